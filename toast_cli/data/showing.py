"""A contact sheet: images of a split as the model will see them, after resizing, cropping and augmentation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from torchvision.transforms.v2 import functional

from toast_cli.data.loading import image_batches
from toast_cli.data.source import Asked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toast_cli.backbone import Backbone
    from toast_cli.data.source import ImageSplit
    from toast_cli.recipe.schema import Recipe

INCH = 1.6
"""Width and height of one image on the sheet."""


def contact_sheet(
    split: ImageSplit, classes: Sequence[str], recipe: Recipe, backbone: Backbone, count: int, augment: bool
) -> Figure:
    """`count` images that the recipe's seed draws, each under its class; where there are masks, with their outline.

    Raises:
        UsageError: the backbone does not look at images.
        ToastError: an image cannot be read.
    """
    count = min(count, len(split))
    asked = Asked(count, shuffle=True, augment=augment, with_masks=split.has_masks)
    batch = next(iter(image_batches(split, recipe, backbone, asked)))
    count = len(batch["label"])  # fewer, where images.on_error=skip left some out
    seen = backbone.require_preprocessing()
    mean, std = recipe.images.normalization(seen.mean, seen.std)
    inverse = [-m / s for m, s in zip(mean, std, strict=True)], [1 / s for s in std]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(INCH * columns, (INCH + 0.25) * rows), layout="constrained")
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if number >= count:
            continue
        image = functional.normalize(batch["image"][number], *inverse).clamp(0, 1)
        axes.imshow(image.permute(1, 2, 0).numpy())
        if "mask" in batch:
            axes.contour(batch["mask"][number].numpy(), levels=[0.5], colors="yellow", linewidths=1)
        axes.set_title(_short(classes[int(batch["label"][number])]), fontsize=7, parse_math=False)
    return figure


def write_sheet(figure: Figure, path: Path) -> None:
    """Write it as a PNG."""
    figure.savefig(path, format="png", dpi=140)


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
