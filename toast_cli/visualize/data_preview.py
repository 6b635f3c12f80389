"""Contact sheets: images of a split as the model sees them, after resizing, cropping and augmentation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from torchvision.transforms.v2 import functional

from toast_cli.data.base import BatchOptions
from toast_cli.model.recipe_data import build_batches
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.names import escape_newlines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from matplotlib.axes import Axes
    from torch import Tensor

    from toast_cli.backbones.base import Backbone
    from toast_cli.data.base import DataSet
    from toast_cli.recipe.schema import Recipe

SHEET_IMAGE_SIDE = 1.6
"""Width and height of an image on the sheet, in inches."""


def draw_contact_sheet(
    data: DataSet, part: str, recipe: Recipe, backbone: Backbone, count: int, augment: bool
) -> Figure:
    """Draw `count` images of a split, drawn by the recipe's seed, each with its class and the outline of its mask.

    For a segmentation data set, each class has a colour, and the title of an image lists its largest classes.

    Raises:
        UsageError: the backbone does not accept images, or the recipe's task does not fit the data set.
        ToastError: an image cannot be read.
    """
    split = data.splits[part]
    count = min(count, len(split))
    options = BatchOptions(count, shuffle=True, augment=augment, with_masks=split.has_masks)
    return draw_batch(next(iter(build_batches(split, recipe, backbone, options))), data.classes, recipe, backbone)


def draw_batch(batch: Mapping[str, Any], classes: Sequence[str], recipe: Recipe, backbone: Backbone) -> Figure:
    """Draw the images of a batch, each with its class and the outline of its mask, or with its pixel classes.

    Raises:
        UsageError: the backbone does not accept images.
    """
    count = len(batch["image"])  # fewer than requested if images.on_error=skip left some out
    preprocessing = backbone.require_preprocessing()
    mean, std = recipe.images.normalization(preprocessing.mean, preprocessing.std)
    inverse = [-m / s for m, s in zip(mean, std, strict=True)], [1 / s for s in std]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(SHEET_IMAGE_SIDE * columns, (SHEET_IMAGE_SIDE + 0.25) * rows), layout="constrained")
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if number >= count:
            continue
        image, labels = _get_image_and_labels(batch, number)
        axes.imshow(functional.normalize(image, *inverse).clamp(0, 1).permute(1, 2, 0).numpy())
        if "mask" in batch:
            axes.contour(batch["mask"][number].numpy(), levels=[0.5], colors="yellow", linewidths=1)
        if labels is not None:
            axes.set_title(_truncate(_overlay_classes(axes, labels, classes)), fontsize=7)
        elif (label := int(batch["label"][number])) != IGNORE_INDEX:
            axes.set_title(_truncate(classes[label]), fontsize=7)
    return figure


def _get_image_and_labels(batch: Mapping[str, Any], number: int) -> tuple[Tensor, Tensor | None]:
    """Return an image without padding, and its pixel classes `[h, w]` if it has them."""
    image, labels = batch["image"][number], batch.get("labels")
    if labels is None:
        return image, None
    labels = labels[number]
    if "extent" in batch:
        (rows, columns), (height, width) = batch["extent"][number].tolist(), batch["size"][number].tolist()
        image, labels = image[:, :rows, :columns], labels[:height, :width]
        size, nearest = [rows, columns], functional.InterpolationMode.NEAREST
        labels = functional.resize(labels[None], size, nearest, antialias=False)[0]
    return image, labels


def _overlay_classes(axes: Axes, labels: Tensor, classes: Sequence[str]) -> str:
    """Draw pixel classes over an image, and return the names of its classes, the largest first."""
    shown = np.ma.masked_equal(labels.numpy(), IGNORE_INDEX)
    axes.imshow(shown, cmap="hsv", vmin=0, vmax=len(classes), alpha=0.5, interpolation="nearest")
    covered = torch.bincount(labels[labels != IGNORE_INDEX], minlength=len(classes))
    largest = [classes[index] for index in covered.argsort(descending=True).tolist() if covered[index]]
    return ", ".join(largest) or "no class"


def _truncate(name: str, length: int = 24) -> str:
    line = escape_newlines(name)
    return line if len(line) <= length else line[: length - 1] + "…"
