"""The attention figure: image, attention in pass one, similarity to xi, attention in pass two (figure 4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor
from torch.nn import functional as F

from toast_cli.attention.maps import Look
from toast_cli.backbone import Preprocessing
from toast_cli.storage.atomic import written_whole


@dataclass(frozen=True)
class Shown:
    """One image with its maps, ready to draw: `image` [H, W, 3] in 0..1 as the model saw it, maps [H, W]."""

    image: np.ndarray
    first: np.ndarray
    similarity: np.ndarray | None
    last: np.ndarray | None
    mask: np.ndarray | None
    titles: tuple[str, ...]
    segmented: tuple[Segments, ...] = ()


@dataclass(frozen=True)
class Segments:
    """A panel of classes: its title, `classes` [H, W] with a class for every pixel, and what the classes are called."""

    title: str
    classes: np.ndarray
    names: tuple[str, ...]


def pixels_seen(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Undo the normalisation of one image `[3, H, W]`: `[H, W, 3]`, 0 to 1."""
    channels = image.cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return channels.clamp(0, 1).permute(1, 2, 0).numpy()


def shown(
    look: Look, image: Tensor, preprocessing: Preprocessing, titles: tuple[str, ...], mask: Tensor | None = None
) -> Shown:
    """The first image of a batch with its maps enlarged to the image's size, smoothly, for the eye."""

    def enlarged(values: Tensor | None) -> np.ndarray | None:
        if values is None:
            return None
        large = F.interpolate(values[:1, None].float(), size=image.shape[-2:], mode="bicubic", align_corners=False)
        return large[0, 0].clamp_min(0).cpu().numpy()

    first = enlarged(look.first)
    assert first is not None
    return Shown(
        image=pixels_seen(image, preprocessing.mean, preprocessing.std),
        first=first,
        similarity=enlarged(look.similarity),
        last=enlarged(look.last),
        mask=None if mask is None else mask.cpu().numpy(),
        titles=titles,
    )


MOST_NAMES = 8
"""Classes that a panel's legend has room for, those that cover most first."""


def draw_segments(axis: Axes, image: np.ndarray, segments: Segments) -> None:
    """A panel of classes over the image; what has no class (any number beyond the names) stays plain."""
    count = len(segments.names)
    colours = colormaps["hsv"].resampled(count + 1)
    known = np.where(segments.classes < count, segments.classes, count)
    axis.imshow(image)
    axis.imshow(np.ma.masked_equal(known, count), cmap=colours, vmin=0, vmax=count, alpha=0.65, interpolation="nearest")
    covered = np.bincount(known.ravel(), minlength=count + 1)[:count]
    largest = [int(index) for index in covered.argsort()[::-1][:MOST_NAMES] if covered[index]]
    axis.legend(
        handles=[Patch(color=colours(index), label=segments.names[index]) for index in largest],
        loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, fontsize=7, frameon=False,
    )  # fmt: skip


def draw(picture: Shown, path: Path) -> None:
    """Write the figure; both attention maps share one colour scale, similarity runs from 0 to 1."""
    panels: list[tuple[str, np.ndarray | None, float | None]] = [("image", None, None)]
    top = max(picture.first.max(), 0.0 if picture.last is None else picture.last.max())
    panels.append(("attention, pass one", picture.first, top))
    if picture.similarity is not None:
        panels.append(("similarity to ξ", picture.similarity, 1.0))
    if picture.last is not None:
        panels.append(("attention, pass two", picture.last, top))
    count = len(panels) + len(picture.segmented)
    figure = Figure(figsize=(3.2 * count, 3.9), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis, segments in zip(axes[len(panels) :], picture.segmented, strict=True):
        draw_segments(axis, picture.image, segments)
        axis.set_title(segments.title, fontsize=10)
        axis.set_axis_off()
    for axis, (name, values, limit) in zip(axes, panels, strict=False):
        axis.imshow(picture.image)
        if values is not None:
            drawn = axis.imshow(values, cmap="inferno", alpha=0.65, vmin=0, vmax=limit)
            figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.03, orientation="horizontal").ax.tick_params(
                labelsize=7
            )
        if picture.mask is not None:
            axis.contour(picture.mask.astype(float), levels=[0.5], colors="white", linewidths=1.2)
        axis.set_title(name, fontsize=10)
        axis.set_axis_off()
    figure.suptitle("\n".join(picture.titles), fontsize=9, x=0.01, ha="left", parse_math=False)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=150)
