"""Attention figures, with a row per image and a column per panel (as in the paper's figures 1, 3 and 4)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from toast_cli.attention.predicted_classes import SegmentationMap
from toast_cli.data.images.transforms import CropWindow
from toast_cli.utils.names import shorten_name
from toast_cli.visualize.map_color_scales import OVERLAY_ALPHA, ColorScale, get_class_colormap

PANEL_WIDTH = 2.7
"""Width of a panel, in inches."""
COLORBAR_HEIGHT = 0.1
"""Height of a colour bar, in inches."""
FIGURE_IMAGE_SIDE = 640
"""Longest side of an image in a figure, in pixels; larger images are shrunk."""
MIN_SMOOTH_CELLS = 7
"""Cells per side from which a map is interpolated. With fewer cells, interpolation would invent detail."""
MAX_LEGEND_CLASSES = 8
"""Largest number of classes in a legend."""
MAX_HEADING_LENGTH = 30
"""Largest number of characters of a name in a heading or a legend."""


@dataclass(frozen=True)
class FigurePanel:
    """A panel of a row: the image alone, or with a map `[rows, columns]` or pixel classes over its visible window.

    `heading` is plain text, without markup. `crosses` `[rows, columns]` is True on the cells that get a cross.
    """

    heading: str
    window: CropWindow
    values: np.ndarray | None = None
    scale: ColorScale | None = None
    segments: SegmentationMap | None = None
    crosses: np.ndarray | None = None


@dataclass(frozen=True)
class FigureRow:
    """An image with its panels; `mask` `[H, W]`, at the image's own size, is outlined on each panel."""

    image: Image.Image
    panels: tuple[FigurePanel, ...]
    mask: np.ndarray | None = None


def draw_figure(rows: Sequence[FigureRow], title: str) -> Figure:
    """Draw a figure. All rows have the same number of panels, and the panels of a column share a scale."""
    columns = len(rows[0].panels)
    title = "\n".join(part for line in title.split("\n") for part in wrap(line, int(13 * PANEL_WIDTH * columns)))
    heights = [PANEL_WIDTH * min(max(row.image.height / row.image.width, 0.3), 2.5) for row in rows]
    around = [max(panel.heading.count("\n") + 1 + count_legend_lines(panel) for panel in row.panels) for row in rows]
    above = 0.12 + 0.16 * (title.count("\n") + 1)
    below = 0.7 + 0.13 * max(
        (len(_wrap_scale_label(panel.scale, 1)) for panel in rows[0].panels if panel.scale), default=0
    )
    total = sum(heights) + 0.2 * sum(around) + below + above
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - above / total))  # reserve space for the title
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
    figure.text(0.01, 1 - 0.05 / total, title, fontsize=9, ha="left", va="top")
    return figure


def draw_colorbar(figure: Figure, place: Axes, scale: ColorScale, size: float, panels: int = 1) -> None:
    """Draw the colour bar of `panels` panels; `size` is the font size."""
    colour = ScalarMappable(Normalize(scale.low, scale.high), blend_colormap_over_gray(colormaps[scale.colours]))
    bar = figure.colorbar(colour, cax=place, orientation="horizontal")
    positions, labels = zip(*scale.get_ticks(), strict=True)
    bar.set_ticks(list(positions), labels=list(labels))
    bar.ax.tick_params(labelsize=size)
    first, _, last = bar.ax.get_xticklabels()
    first.set_horizontalalignment("left")  # keep the labels within the bar, next to which another one starts
    last.set_horizontalalignment("right")
    bar.set_label("\n".join(_wrap_scale_label(scale, panels)), fontsize=size)


def blend_colormap_over_gray(colours: Colormap) -> ListedColormap:
    """Return the colours of the map as they appear over a mid-grey image."""
    opaque = colours(np.linspace(0, 1, colours.N))[:, :3]
    return ListedColormap(OVERLAY_ALPHA * opaque + (1 - OVERLAY_ALPHA) * 0.5)


def _wrap_scale_label(scale: ColorScale, panels: int) -> list[str]:
    """Return the lines of a scale's label, wrapped to the width of `panels` panels."""
    return wrap(scale.label, int(19 * PANEL_WIDTH * panels))


def draw_panel(axis: Axes, row: FigureRow, panel: FigurePanel, small: Image.Image) -> None:
    """Draw a panel in the pixels of the original image: the map over a grey image, darkened outside the crop."""
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
    if panel.crosses is not None:
        draw_crosses(axis, panel.crosses, window)
    if panel.segments is not None:
        draw_segmentation(axis, panel.segments, seen_extent)
    if left > -0.25 or top > -0.25 or window.width < width - 0.5 or window.height < height - 0.5:
        draw_crop(axis, seen_extent, image_extent)
    if row.mask is not None and min(row.mask.shape) > 1:  # a line has no outline
        axis.contour(row.mask.astype(float), levels=[0.5], colors="black", linewidths=2.2)
        axis.contour(row.mask.astype(float), levels=[0.5], colors="white", linewidths=1.0)
    axis.set_xlim(image_extent[:2])
    axis.set_ylim(image_extent[2:])
    axis.set_title(panel.heading, fontsize=8)
    axis.set_axis_off()


def draw_crop(axis: Axes, seen_extent: tuple[float, ...], image_extent: tuple[float, ...]) -> None:
    """Darken the image outside the model's crop, and outline the crop."""
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


def draw_crosses(axis: Axes, cells: np.ndarray, window: CropWindow) -> None:
    """Draw a cross on the cells `[rows, columns]` that are True."""
    rows, columns = np.nonzero(cells)
    x = window.left - 0.5 + (columns + 0.5) * window.width / cells.shape[1]
    y = window.top - 0.5 + (rows + 0.5) * window.height / cells.shape[0]
    for colour, width in (("black", 2.6), ("white", 1.2)):
        axis.scatter(x, y, s=26, c=colour, marker="x", linewidths=width)


def draw_segmentation(axis: Axes, segments: SegmentationMap, extent: tuple[float, float, float, float]) -> None:
    """Draw pixel classes over the model's crop. Pixels whose number has no name are left as they are."""
    count = len(segments.names)
    colours = get_class_colormap(count)
    blended = blend_colormap_over_gray(colours)
    known = np.where(segments.classes < count, segments.classes, count)
    visible = np.ma.masked_equal(known, count)
    axis.imshow(visible, extent=extent, cmap=colours, vmin=0, vmax=count, alpha=OVERLAY_ALPHA, interpolation="nearest")
    axis.legend(
        handles=[
            Patch(color=blended(index), label=shorten_name(segments.names[index], MAX_HEADING_LENGTH))
            for index in get_largest_classes(segments)
        ],
        loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, fontsize=7, frameon=False,
    )  # fmt: skip


def get_largest_classes(segments: SegmentationMap) -> list[int]:
    """Return the classes of a legend, the largest first."""
    count = len(segments.names)
    covered = np.bincount(segments.classes[segments.classes < count].ravel(), minlength=count)
    return [int(index) for index in covered.argsort()[::-1][:MAX_LEGEND_CLASSES] if covered[index]]


def count_legend_lines(panel: FigurePanel) -> int:
    """Return the lines of a panel's legend, which has two classes per line."""
    return 0 if panel.segments is None else -(-len(get_largest_classes(panel.segments)) // 2)


def shrink_image(image: Image.Image) -> Image.Image:
    """Return the image, shrunk to `FIGURE_IMAGE_SIDE` if it is larger."""
    small = image.copy()
    small.thumbnail((FIGURE_IMAGE_SIDE, FIGURE_IMAGE_SIDE))
    return small
