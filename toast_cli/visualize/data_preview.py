"""Contact sheets: images of a split as the model sees them, after resizing, cropping and augmentation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torchvision.transforms.v2 import functional

from toast_cli.data.base import BatchOptions
from toast_cli.model.recipe_data import build_batches
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import UsageError
from toast_cli.utils.names import escape_newlines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    options = BatchOptions(
        count, shuffle=True, augment=augment, with_masks=split.has_masks and _keeps_masks(recipe, augment)
    )
    return draw_batch(next(iter(build_batches(split, recipe, backbone, options))), data, recipe, backbone)


def draw_batch(batch: Mapping[str, Any], data: DataSet, recipe: Recipe, backbone: Backbone) -> Figure:
    """Draw the images of a batch, each with its label and the outline of its mask, or with its pixel classes.

    Raises:
        UsageError: the backbone does not accept images.
    """
    count = len(batch["image"])  # fewer than requested if images.on_error=skip left some out
    columns = math.ceil(math.sqrt(count))
    figure, grid = _make_sheet(math.ceil(count / columns), columns)
    restore = _get_pixel_inverse(recipe, backbone)
    for number, axes in enumerate(grid.flat):
        if number < count:
            item = {name: tensor[number] for name, tensor in batch.items()}
            axes.set_title(_truncate(_draw_item(axes, item, data, restore)), fontsize=7)
    return figure


def draw_augmentation_sheet(data: DataSet, recipe: Recipe, backbone: Backbone, count: int, views: int) -> Figure:
    """Draw `count` training images, drawn by the recipe's seed, a row each: as in evaluation, then in each epoch.

    The views are those of epochs 1, 2, ... of a run with this recipe, without mixup and cutmix.

    Raises:
        UsageError: the recipe has no random augmentation, the backbone does not accept images, or the recipe's task
            does not fit the data set.
        ToastError: an image cannot be read.
    """
    if not recipe.images.is_random:
        raise UsageError(
            "The recipe does not augment images, so all views would be alike.",
            what_to_do="Add an augmentation, for example images.augment=crop-flip or images.auto_augment=trivial.",
            code="image.no-augmentation",
        )
    split = data.splits["train"]
    count = min(count, len(split))
    plain: Any = build_batches(split, recipe, backbone, BatchOptions(count, shuffle=True))
    augmented: Any = build_batches(split, recipe, backbone, BatchOptions(count, augment=True))
    figure, grid = _make_sheet(count, views + 1)
    restore = _get_pixel_inverse(recipe, backbone)
    for row, index in zip(grid, next(iter(plain.batch_sampler)), strict=True):
        item = plain.dataset[index]
        row[0].set_title(_truncate(_draw_item(row[0], item, data, restore)), fontsize=7)
        for epoch, axes in enumerate(row[1:], 1):
            augmented.dataset.set_epoch(epoch)
            _draw_item(axes, augmented.dataset[index], data, restore)
            axes.set_title(f"epoch {epoch}", fontsize=7)
    return figure


def _keeps_masks(recipe: Recipe, augment: bool) -> bool:
    """Return whether masks can follow their images: policies and erasing do not take them."""
    return not (augment and (recipe.images.auto_augment or recipe.images.erasing))


def _make_sheet(rows: int, columns: int) -> tuple[Figure, Any]:
    """Return a figure and its axes `[rows, columns]`, without frames."""
    figure = Figure(figsize=(SHEET_IMAGE_SIDE * columns, (SHEET_IMAGE_SIDE + 0.25) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, grid


def _get_pixel_inverse(recipe: Recipe, backbone: Backbone) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation that undo the normalization of pixels."""
    preprocessing = backbone.require_preprocessing()
    mean, std = recipe.images.normalization(preprocessing.mean, preprocessing.std)
    return [-m / s for m, s in zip(mean, std, strict=True)], [1 / s for s in std]


def _draw_item(axes: Axes, item: Mapping[str, Any], data: DataSet, restore: tuple[list[float], list[float]]) -> str:
    """Draw an image with its mask or its pixel classes, and return its title: its label, or its largest classes."""
    image, labels = _get_image_and_labels(item)
    axes.imshow(functional.normalize(image, *restore).clamp(0, 1).permute(1, 2, 0).numpy())
    if "mask" in item:
        axes.contour(item["mask"].numpy(), levels=[0.5], colors="yellow", linewidths=1)
    if labels is None:
        return format_label(torch.as_tensor(item["label"]), data)
    return _overlay_classes(axes, labels, data.classes)


def _get_image_and_labels(item: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Return an image without padding, and its pixel classes `[h, w]` if it has them."""
    image, labels = item["image"], item.get("labels")
    if labels is None:
        return image, None
    if "extent" in item:
        (rows, columns), (height, width) = item["extent"].tolist(), item["size"].tolist()
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


def format_label(label: Tensor, data: DataSet) -> str:
    """Return the label of an image as text: its class, its labels, or its numbers; empty if it is left out."""
    if data.target == "class":
        return "" if int(label) == IGNORE_INDEX else data.classes[int(label)]
    if label.isnan().any():
        return ""
    if data.target == "labels":
        return ", ".join(data.classes[index] for index in label.nonzero().flatten().tolist()) or "no label"
    return ", ".join(f"{name} {value:g}" for name, value in zip(data.classes, label.tolist(), strict=True))


def _truncate(name: str, length: int = 24) -> str:
    line = escape_newlines(name)
    return line if len(line) <= length else line[: length - 1] + "…"
