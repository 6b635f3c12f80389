"""Attention figures: rows are images, columns what is shown of them (the paper's figures 1, 3 and 4)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from toast_cli.attention.segmentation import SegmentationMap
from toast_cli.data.images.transforms import CropWindow
from toast_cli.utils.files import write_atomically
from toast_cli.visualize.color_scales import ColorScale

FIGURE_FORMATS = ("png", "svg", "pdf")
PANEL_WIDTH = 2.7
"""Inches of a panel."""
COLORBAR_HEIGHT = 0.1
"""Inches that a bar of colours is high."""
FIGURE_IMAGE_SIDE = 640
"""Longest side of an image in a figure; larger ones are shown smaller."""
OVERLAY_ALPHA = 0.65
"""How much of a pixel is the map's colour; the rest is the grey image below it."""
MIN_SMOOTH_CELLS = 7
"""Cells a side from which a map is drawn smoothly; of fewer, what lies between two cells would be made up."""
MAX_LEGEND_CLASSES = 8
"""Classes that a panel's legend has room for, those that cover most first."""


@dataclass(frozen=True)
class FigurePanel:
    """One picture of a row: the image alone, or a map `[rows, columns]` over what is seen of it, in a scale's colours.

    `heading` is above it, as it is: nothing in it is markup.
    """

    heading: str
    window: CropWindow
    values: np.ndarray | None = None
    scale: ColorScale | None = None
    segments: SegmentationMap | None = None


@dataclass(frozen=True)
class FigureRow:
    """An image with its panels; `mask` `[H, W]` at the image's own size is outlined on all of them."""

    image: Image.Image
    panels: tuple[FigurePanel, ...]
    mask: np.ndarray | None = None


def draw_figure(rows: Sequence[FigureRow], title: str) -> Figure:
    """Draw a figure. Every row has as many panels, and those of a column one scale."""
    columns = len(rows[0].panels)
    title = "\n".join(part for line in title.split("\n") for part in wrap(line, int(13 * PANEL_WIDTH * columns)))
    heights = [PANEL_WIDTH * min(max(row.image.height / row.image.width, 0.3), 2.5) for row in rows]
    around = [max(panel.heading.count("\n") + 1 + count_legend_lines(panel) for panel in row.panels) for row in rows]
    above = 0.12 + 0.16 * (title.count("\n") + 1)
    below = 0.7 + 0.13 * max(
        (len(_wrap_scale_label(panel.scale, 1)) for panel in rows[0].panels if panel.scale), default=0
    )
    total = sum(heights) + 0.2 * sum(around) + below + above
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - above / total))  # the title has a place of its own
    figure = Figure(figsize=(PANEL_WIDTH * columns, total), layout=layout)
    grid = figure.add_gridspec(len(rows) + 1, columns, height_ratios=[*heights, COLORBAR_HEIGHT])
    for number, row in enumerate(rows):
        small = shrink_image(row.image)
        for column, panel in enumerate(row.panels):
            draw_panel(figure.add_subplot(grid[number, column]), row, panel, small)
    for scale, group in itertools.groupby(range(columns), key=lambda column: rows[0].panels[column].scale):
        if scale is not None:
            over = list(group)
            draw_colorbar(figure, figure.add_subplot(grid[-1, over[0] : over[-1] + 1]), scale, 7, len(over))
    figure.text(0.01, 1 - 0.05 / total, title, fontsize=9, ha="left", va="top", parse_math=False)
    return figure


def draw_colorbar(figure: Figure, place: Axes, scale: ColorScale, size: float, panels: int = 1) -> None:
    """Draw what the colours of so many panels mean, with numbers; `size` is that of the letters."""
    colour = ScalarMappable(Normalize(scale.low, scale.high), blend_colormap_over_gray(colormaps[scale.colours]))
    bar = figure.colorbar(colour, cax=place, orientation="horizontal")
    places, words = zip(*scale.ticks(), strict=True)
    bar.set_ticks(list(places), labels=list(words))
    bar.ax.tick_params(labelsize=size)
    least, _, most = bar.ax.get_xticklabels()
    least.set_horizontalalignment("left")  # within its own bar: a neighbour's begins where this one ends
    most.set_horizontalalignment("right")
    bar.set_label("\n".join(_wrap_scale_label(scale, panels)), fontsize=size)


def blend_colormap_over_gray(colours: Colormap) -> ListedColormap:
    """Return the colours as they look over a mid-grey image."""
    opaque = colours(np.linspace(0, 1, colours.N))[:, :3]
    return ListedColormap(OVERLAY_ALPHA * opaque + (1 - OVERLAY_ALPHA) * 0.5)


def _wrap_scale_label(scale: ColorScale, panels: int) -> list[str]:
    """Return the lines of a scale's label below the bar of so many panels."""
    return wrap(scale.label, int(19 * PANEL_WIDTH * panels))


def draw_panel(axis: Axes, row: FigureRow, panel: FigurePanel, small: Image.Image) -> None:
    """Draw a panel in the original image's pixels: colours where the model looks, grey and dark outside its view."""
    height, width = row.image.height, row.image.width
    image_extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    window = panel.window
    left, top = window.left - 0.5, window.top - 0.5
    seen_extent = (left, left + window.width, top + window.height, top)
    if panel.values is None and panel.segments is None:
        axis.imshow(np.asarray(small), extent=image_extent, interpolation="nearest")
    else:
        axis.imshow(
            np.asarray(small.convert("L")), extent=image_extent, cmap="gray", vmin=0, vmax=255, interpolation="nearest"
        )
    if panel.values is not None and panel.scale is not None:
        axis.imshow(
            panel.values, extent=seen_extent, cmap=panel.scale.colours, vmin=panel.scale.low, vmax=panel.scale.high,
            alpha=OVERLAY_ALPHA, interpolation="bilinear" if min(panel.values.shape) >= MIN_SMOOTH_CELLS else "nearest",
        )  # fmt: skip
    if panel.segments is not None:
        draw_segmentation(axis, panel.segments, seen_extent)
    if left > -0.25 or top > -0.25 or window.width < width - 0.5 or window.height < height - 0.5:
        draw_crop(axis, seen_extent, image_extent)
    if row.mask is not None:
        axis.contour(row.mask.astype(float), levels=[0.5], colors="black", linewidths=2.2)
        axis.contour(row.mask.astype(float), levels=[0.5], colors="white", linewidths=1.0)
    axis.set_xlim(image_extent[:2])
    axis.set_ylim(image_extent[2:])
    axis.set_title(panel.heading, fontsize=8, parse_math=False)
    axis.set_axis_off()


def draw_crop(axis: Axes, seen_extent: tuple[float, ...], image_extent: tuple[float, ...]) -> None:
    """Darken what the model does not see, and mark the edge of what it does."""
    left, right, bottom, top = seen_extent
    ring: dict[str, Any] = {"facecolor": "black", "alpha": 0.55, "linewidth": 0}
    for x, y, width, height in (
        (image_extent[0], image_extent[3], left - image_extent[0], image_extent[2] - image_extent[3]),
        (right, image_extent[3], image_extent[1] - right, image_extent[2] - image_extent[3]),
        (left, image_extent[3], right - left, top - image_extent[3]),
        (left, bottom, right - left, image_extent[2] - bottom),
    ):
        if width > 0 and height > 0:
            axis.add_patch(Rectangle((x, y), width, height, **ring))
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="black", linewidth=1.6))
    axis.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white", linewidth=0.9, linestyle="--")
    )


def draw_segmentation(axis: Axes, segments: SegmentationMap, extent: tuple[float, float, float, float]) -> None:
    """Draw classes over what the model sees; what has no class (any number beyond the names) stays plain."""
    count = len(segments.names)
    colours = colormaps["hsv"].resampled(count + 1)
    as_seen = blend_colormap_over_gray(colours)
    known = np.where(segments.classes < count, segments.classes, count)
    shown = np.ma.masked_equal(known, count)
    axis.imshow(shown, extent=extent, cmap=colours, vmin=0, vmax=count, alpha=OVERLAY_ALPHA, interpolation="nearest")
    axis.legend(
        handles=[Patch(color=as_seen(index), label=segments.names[index]) for index in get_largest_classes(segments)],
        loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, fontsize=7, frameon=False,
    )  # fmt: skip


def get_largest_classes(segments: SegmentationMap) -> list[int]:
    """The classes that a legend names, those that cover most first."""
    count = len(segments.names)
    covered = np.bincount(segments.classes[segments.classes < count].ravel(), minlength=count)
    return [int(index) for index in covered.argsort()[::-1][:MAX_LEGEND_CLASSES] if covered[index]]


def count_legend_lines(panel: FigurePanel) -> int:
    """Lines that a panel's legend takes, two classes in each."""
    return 0 if panel.segments is None else -(-len(get_largest_classes(panel.segments)) // 2)


def shrink_image(image: Image.Image) -> Image.Image:
    """An image no larger than a figure needs."""
    small = image.copy()
    small.thumbnail((FIGURE_IMAGE_SIDE, FIGURE_IMAGE_SIDE))
    return small


def save_figure(figure: Figure, path: Path) -> None:
    """Write it in the format that the path ends with, the same bytes each time."""
    kind = path.suffix.lstrip(".")
    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    if kind == "svg":
        FigureCanvasSVG(figure)
    with write_atomically(path) as temporary, rc_context({"svg.hashsalt": "toast"}):
        figure.savefig(temporary, format=kind, dpi=130, metadata=undated)
