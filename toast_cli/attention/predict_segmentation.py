"""Which class every pixel of a whole image has: the image in its own shape, as evaluation shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.segmentation.loader import build_segmentation_transform
from toast_cli.model.model import Model

if TYPE_CHECKING:
    from PIL.Image import Image


@torch.no_grad()
def predict_pixel_classes(model: Model, images: ImageOptions, image: Image) -> Tensor:
    """Classes `[H, W]` at the image's own size; a window slides over it, or it is squeezed, as the task has it."""
    wishes, seen = cast("Any", model.objective).options, model.backbone.require_preprocessing()
    shown = build_segmentation_transform(images, wishes, seen, train=False)(image).as_subclass(Tensor)[None]
    batch = {"image": shown.to(next(model.parameters()).device), "extent": torch.tensor([shown.shape[-2:]])}
    scores = model.objective.predict(model, batch).float()
    whole = F.interpolate(scores, size=(image.height, image.width), mode="bilinear", align_corners=False)
    return whole.argmax(1)[0].cpu()
