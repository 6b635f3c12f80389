"""A figure of the attention before and after tuning: image, frozen backbone, tuned model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from toast_cli.data.base import Sample
from toast_cli.utils.names import shorten_name
from toast_cli.visualize.figure import (
    MAX_HEADING_LENGTH,
    FigurePanel,
    FigureRow,
    draw_colorbar,
    draw_panel,
    shrink_image,
)
from toast_cli.visualize.figure_panels import build_shared_scale, get_label_name, to_multiples_of_uniform
from toast_cli.visualize.view import ImageView

PANEL_SIDE = 2.1
"""Side of a panel, in inches."""
HEADER_HEIGHT, FOOTER_HEIGHT, CAPTION_HEIGHT = 1.15, 0.75, 0.42
"""Space above the first row, below the last row, and below each panel, in inches."""
CORRECT_COLOR, WRONG_COLOR = "#1d6b2a", "#a3161b"


def draw_before_after(
    samples: Sequence[Sample],
    before: Sequence[ImageView],
    after: Sequence[ImageView],
    title: str,
    subtitle: str,
    headings: tuple[str, str, str],
) -> Figure:
    """Draw a row for each image: the image, the map before and the map after, with both predictions.

    Args:
        samples: the images, with labels and masks.
        before: the views of the frozen backbone, which has one pass.
        after: the views of the tuned model, whose last pass is shown.
        title: the first line.
        subtitle: the lines below the title.
        headings: the headings of the three columns.
    """
    views = [
        [to_multiples_of_uniform(one.maps)["pass_one"], _get_last_map(two)]
        for one, two in zip(before, after, strict=True)
    ]
    shared = build_shared_scale("attention", [values for pair in views for values in pair])
    scale = replace(shared, label="attention on a patch (1: spread evenly over the image)")
    rows, columns = len(samples), 3
    pitch = PANEL_SIDE + CAPTION_HEIGHT
    width, height = columns * (PANEL_SIDE + 0.15) + 0.15, HEADER_HEIGHT + rows * pitch + FOOTER_HEIGHT
    figure = Figure(figsize=(width, height))
    figure.text(0.15 / width, 1 - 0.12 / height, title, fontsize=12, fontweight="bold", va="top")
    figure.text(0.15 / width, 1 - 0.42 / height, subtitle, fontsize=8.5, va="top", color="#333", linespacing=1.35)
    for number, (sample, one, two) in enumerate(zip(samples, before, after, strict=True)):
        label, small = get_label_name(sample, one), shrink_image(sample.image)
        captions = [
            (f"answer: {shorten_name(label, MAX_HEADING_LENGTH)}", "#222"),
            _format_caption(one, label, "pass_one"),
            _format_caption(two, label, "pass_two"),
        ]
        panels = [
            FigurePanel("", one.window),
            *(FigurePanel("", one.window, values, scale) for values in views[number]),
        ]
        bottom = height - HEADER_HEIGHT - number * pitch - PANEL_SIDE
        for column, (panel, (text, color)) in enumerate(zip(panels, captions, strict=True)):
            left = 0.15 + column * (PANEL_SIDE + 0.15)
            axis = figure.add_axes((left / width, bottom / height, PANEL_SIDE / width, PANEL_SIDE / height))
            draw_panel(axis, FigureRow(sample.image, tuple(panels), sample.mask), panel, small)
            if number == 0:
                axis.set_title(headings[column], fontsize=9, fontweight="bold")
            figure.text(
                (left + PANEL_SIDE / 2) / width, (bottom - 0.06) / height, text,
                fontsize=8.5, ha="center", va="top", color=color,
            )  # fmt: skip
    left = 0.15 + (PANEL_SIDE + 0.15) * 1.25
    bar = figure.add_axes((left / width, 0.52 / height, PANEL_SIDE * 1.6 / width, 0.1 / height))
    draw_colorbar(figure, bar, scale, 7, 2)
    return figure


def _get_last_map(view: ImageView) -> np.ndarray:
    maps = to_multiples_of_uniform(view.maps)
    return maps.get("pass_two", maps["pass_one"])


def _format_caption(view: ImageView, label: str, name: str) -> tuple[str, str]:
    """Return the caption, with the prediction and the share of attention on the object, and its colour."""
    prediction = view.last or view.first
    assert prediction is not None
    correct = prediction.label == label
    text = f"{'✓' if correct else '✗'} {shorten_name(prediction.label, MAX_HEADING_LENGTH)}"
    if name in view.shares:
        text += f"\n{view.shares[name]:.0%} of attention on the object"
    return text, CORRECT_COLOR if correct else WRONG_COLOR
