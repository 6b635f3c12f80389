"""The simple style: the picture, where the model looks without and with TOAST, and one sentence, for everybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from toast_cli.attention.feature_energy import FEATURE_ENERGY
from toast_cli.data.base import Sample
from toast_cli.data.images.transforms import CropWindow
from toast_cli.visualize.figure import (
    FigurePanel,
    FigureRow,
    blend_colormap_over_gray,
    count_legend_lines,
    draw_panel,
    shrink_image,
)
from toast_cli.visualize.figure_panels import (
    build_shared_scale,
    get_label_names,
    is_right,
    to_multiples_of_uniform,
)
from toast_cli.visualize.styles.base import FigureStyle, Views, measure_lines, wrap_text, write_lines
from toast_cli.visualize.styles.captions import (
    describe_look,
    get_strength,
    write_register_note,
    write_sentence,
    write_verdict,
)
from toast_cli.visualize.view import ImageView

WIDTH, MARGIN, GAP = 8.0, 0.15, 0.12
"""Width of the figure, its margin, and the space between panels, in inches."""
MAX_PANEL_WIDTH = 3.4
HEADING_SIZE, SENTENCE_SIZE, VERDICT_SIZE, NOTE_SIZE = 12.0, 14.0, 13.0, 10.5
"""Font sizes, in points. At a width of 800 pixels, one point is 1.4 pixels."""
RIGHT_COLOR, WRONG_COLOR, QUIET_COLOR = "#1d6b2a", "#a3161b", "#444444"
LEGEND = "Dark: hardly looked at. Bright: looked at most."
ENERGY_LEGEND = "Dark: weak features. Bright: strong features."
TOAST_LEGEND = " TOAST lets the same, unchanged network look a second time, at what matters for its task."


@dataclass(frozen=True)
class _Block:
    """An image with its panels and its texts."""

    row: FigureRow
    headings: list[str]
    name: str
    sentence: list[str]
    verdict: str
    right: bool | None
    note: list[str]
    panel: tuple[float, float]

    @property
    def legend(self) -> float:
        """Return the height of the legend of pixel classes, in inches."""
        return 0.2 * max(map(count_legend_lines, self.row.panels))

    @property
    def height(self) -> float:
        """Return the height in inches."""
        texts = measure_lines(2, HEADING_SIZE) + 0.06 + self.panel[1] + 0.12 + self.legend
        texts += measure_lines(len(self.sentence), SENTENCE_SIZE) + 0.08
        texts += (measure_lines(1, VERDICT_SIZE) + 0.06) * bool(self.verdict)
        return texts + (measure_lines(len(self.note), NOTE_SIZE) + 0.04) * bool(self.note) + 0.1


def draw_simple(samples: Sequence[Sample], views: Views) -> Figure:
    """Draw a block per image and model: the picture, the maps of the passes, a sentence, and the true class."""
    blocks = [
        _build_block(sample, view, len(row) > 1) for sample, row in zip(samples, views, strict=True) for view in row
    ]
    first = views[0][0]
    text = ENERGY_LEGEND if first.kind == FEATURE_ENERGY else LEGEND
    legend = wrap_text(text + TOAST_LEGEND * ("pass_two" in first.maps), WIDTH - 2 * MARGIN - 1.5, NOTE_SIZE)
    foot = max(measure_lines(len(legend), NOTE_SIZE), 0.2) + 0.15
    height = sum(block.height for block in blocks) + foot + 0.1
    figure = Figure(figsize=(WIDTH, height))
    top = height - 0.1
    for block in blocks:
        _draw_block(figure, block, top)
        top -= block.height
    bar = figure.add_axes((MARGIN / WIDTH, (foot - 0.24) / height, 1.25 / WIDTH, 0.14 / height))
    bar.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=blend_colormap_over_gray(colormaps["inferno"]))
    bar.set_axis_off()
    write_lines(figure, legend, MARGIN + 1.4, foot - 0.06, NOTE_SIZE, color=QUIET_COLOR)
    return figure


def _build_block(sample: Sample, view: ImageView, named: bool) -> _Block:
    row, headings = build_simple_row(sample, view)
    count = len(row.panels)
    width = min((WIDTH - 2 * MARGIN - GAP * (count - 1)) / count, MAX_PANEL_WIDTH)
    names = get_label_names(sample, view)
    answer = view.last or view.first
    verdict, right = write_verdict(names, None if answer is None else is_right(answer, names, view))
    note = write_register_note(view)
    space = WIDTH - 2 * MARGIN
    return _Block(
        row,
        headings,
        view.viewer.name if named else "",
        wrap_text(write_sentence(sample, view), space, SENTENCE_SIZE),
        verdict,
        right,
        wrap_text(note, space, NOTE_SIZE) if note else [],
        (width, width * min(max(row.image.height / row.image.width, 0.3), 1.6)),
    )


def build_simple_row(sample: Sample, view: ImageView) -> tuple[FigureRow, list[str]]:
    """Return the part of an image that the model sees, with its map or maps on one scale, and their headings.

    For a model that labels pixels, the whole image is shown, and also its predicted classes.
    """
    image, mask, window = sample.image, sample.mask, view.window
    if not view.segments:
        image, mask = crop_to_window(sample, window)
        window = CropWindow(0, 0, image.width, image.height)
    maps = to_multiples_of_uniform(view.get_drawn_maps())
    names = [name for name in ("pass_one", "pass_two") if name in maps]
    scale = build_shared_scale(view.kind, [maps[name] for name in names])
    panels = [FigurePanel("", window)]
    panels += [FigurePanel("", window, maps[name], scale, crosses=view.get_crosses()) for name in names]
    strength, pointed = get_strength(view.viewer), view.viewer.box is not None
    headings = [describe_look(view.kind, name, len(names) > 1, strength, pointed) for name in names]
    if "predicted" in view.segments:
        panels.append(FigurePanel("", CropWindow(0, 0, image.width, image.height), segments=view.segments["predicted"]))
        headings.append("what it says")
    return FigureRow(image, tuple(panels), mask), ["the picture", *headings]


def crop_to_window(sample: Sample, window: CropWindow) -> tuple[Image.Image, np.ndarray | None]:
    """Return the part of an image, and of its mask, that the model sees."""
    left, top = max(round(window.left), 0), max(round(window.top), 0)
    right = min(max(round(window.left + window.width), left + 1), sample.image.width)
    bottom = min(max(round(window.top + window.height), top + 1), sample.image.height)
    mask = None if sample.mask is None else sample.mask[top:bottom, left:right]
    return sample.image.crop((left, top, right, bottom)), mask


def _draw_block(figure: Figure, block: _Block, top: float) -> None:
    """Draw a block whose upper edge is `top` inches above the lower edge of the figure."""
    height = figure.get_figheight()
    small = shrink_image(block.row.image)
    width, tall = block.panel
    bottom = top - measure_lines(2, HEADING_SIZE) - 0.06 - tall
    for number, (panel, heading) in enumerate(zip(block.row.panels, block.headings, strict=True)):
        left = MARGIN + number * (width + GAP)
        axis = figure.add_axes((left / WIDTH, bottom / height, width / WIDTH, tall / height))
        draw_panel(axis, block.row, panel, small)
        lines = (heading[0].upper() + heading[1:]).replace(" with", "\nwith", 1).split("\n")
        if number == 0 and block.name:
            lines = wrap_text(block.name, width, HEADING_SIZE * 1.1)[:2]
        write_lines(
            figure, lines, left + width / 2, bottom + tall + 0.05, HEADING_SIZE,
            ha="center", va="bottom", fontweight="bold",
        )  # fmt: skip
    below = bottom - 0.12 - block.legend
    write_lines(figure, block.sentence, MARGIN, below, SENTENCE_SIZE)
    below -= measure_lines(len(block.sentence), SENTENCE_SIZE) + 0.08
    if block.verdict:
        color = {None: "#222222", True: RIGHT_COLOR, False: WRONG_COLOR}[block.right]
        write_lines(figure, [block.verdict], MARGIN, below, VERDICT_SIZE, color=color)
        below -= measure_lines(1, VERDICT_SIZE) + 0.06
    if block.note:
        write_lines(figure, block.note, MARGIN, below, NOTE_SIZE, color=QUIET_COLOR)


SIMPLE = FigureStyle(
    "simple", "The picture, where the model looks without and with TOAST, and one sentence, for everybody.", draw_simple
)
