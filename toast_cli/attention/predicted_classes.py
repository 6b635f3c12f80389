"""Predicted classes of the pixels of an image, at its own size, as in evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.segmentation.dataset import require_segmentable
from toast_cli.data.segmentation.loader import build_segmentation_transform
from toast_cli.model.model import Model

if TYPE_CHECKING:
    from PIL.Image import Image

RESIZED_CLASSES = 8
"""Number of classes whose scores are resized to the size of an image at a time."""


@dataclass(frozen=True)
class SegmentationMap:
    """Pixel classes for a panel of a figure: `classes` `[H, W]` in its window, and the `names` of all classes."""

    classes: np.ndarray
    names: tuple[str, ...]


@torch.no_grad()
def predict_pixel_classes(model: Model, images: ImageOptions, image: Image) -> Tensor:
    """Return classes `[H, W]` at the image's own size, from a sliding window or the whole image, as the task says.

    Raises:
        ToastError: the image is too thin.
    """
    require_segmentable(image)
    pixels, preprocessing = cast("Any", model.objective).options, model.backbone.require_preprocessing()
    transform = build_segmentation_transform(images, pixels, preprocessing, train=False)
    prepared = transform(image).as_subclass(Tensor)[None]
    batch = {"image": prepared.to(next(model.parameters()).device), "extent": torch.tensor([prepared.shape[-2:]])}
    scores = model.objective.predict(model, batch).float()
    return find_best_classes(scores[0], (image.height, image.width)).cpu()


def find_best_classes(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class with the best score at every pixel, `[H, W]`, of scores `[classes, h, w]` resized to `size`.

    Only a few classes are resized at a time: the scores of all classes of a photograph may not fit into memory.
    """
    best = scores.new_full(size, -torch.inf)
    classes = torch.zeros(size, dtype=torch.long, device=scores.device)
    for first, part in enumerate(scores.split(RESIZED_CLASSES)):
        resized = F.interpolate(part[None], size=size, mode="bilinear", align_corners=False)[0]
        values, found = resized.max(0)
        better = values > best
        best = torch.where(better, values, best)
        classes = torch.where(better, found + first * RESIZED_CLASSES, classes)
    return classes


def format_class_shares(segments: SegmentationMap, most: int = 5) -> str:
    """Return the shares of the largest classes among pixels with a class, as text: `ground 61%, beetle 9%`."""
    known = segments.classes[segments.classes < len(segments.names)]
    shares = np.bincount(known, minlength=len(segments.names)) / max(known.size, 1)
    largest = [int(index) for index in shares.argsort()[::-1][:most] if shares[index]]
    return ", ".join(f"{segments.names[index]} {shares[index]:.0%}" for index in largest)
