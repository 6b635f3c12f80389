"""One figure of what tuning changed: each image, where the frozen backbone looks, where the tuned model looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from toast_cli.data.base import Sample
from toast_cli.visualize.figure import Panel, Row, draw_bar, draw_panel, shrunk
from toast_cli.visualize.layout import label_of, shared_scale, times_even
from toast_cli.visualize.view import View

SIDE = 2.1
"""Inches of a panel."""
HEADER, FOOTER, CAPTION = 1.15, 0.75, 0.42
"""Inches above the first row, below the last, and below every panel."""
RIGHT, WRONG = "#1d6b2a", "#a3161b"


def before_after(
    samples: Sequence[Sample],
    before: Sequence[View],
    after: Sequence[View],
    title: str,
    subtitle: str,
    headings: tuple[str, str, str],
) -> Figure:
    """Draw a row for every image: the image, the map before and the map after, with both predictions.

    Args:
        samples: the images, with labels and masks.
        before: the view of the frozen backbone; its only pass is shown.
        after: the view of the tuned model; its last pass is shown.
        title: the first line.
        subtitle: the lines below it.
        headings: what the three columns are called.
    """
    views = [[times_even(one.maps)["pass_one"], _last_map(two)] for one, two in zip(before, after, strict=True)]
    shared = shared_scale("attention", [values for pair in views for values in pair])
    scale = replace(shared, label="attention on a patch (1: spread evenly over the image)")
    rows, columns = len(samples), 3
    pitch = SIDE + CAPTION
    width, height = columns * (SIDE + 0.15) + 0.15, HEADER + rows * pitch + FOOTER
    figure = Figure(figsize=(width, height))
    figure.text(0.15 / width, 1 - 0.12 / height, title, fontsize=12, fontweight="bold", va="top")
    figure.text(0.15 / width, 1 - 0.42 / height, subtitle, fontsize=8.5, va="top", color="#333", linespacing=1.35)
    for number, (sample, one, two) in enumerate(zip(samples, before, after, strict=True)):
        label, small = label_of(sample, one), shrunk(sample.image)
        captions = [(f"answer: {label}", "#222"), _caption(one, label, "pass_one"), _caption(two, label, "pass_two")]
        panels = [Panel("", one.window), *(Panel("", one.window, values, scale) for values in views[number])]
        bottom = height - HEADER - number * pitch - SIDE
        for column, (panel, (words, color)) in enumerate(zip(panels, captions, strict=True)):
            left = 0.15 + column * (SIDE + 0.15)
            axis = figure.add_axes((left / width, bottom / height, SIDE / width, SIDE / height))
            draw_panel(axis, Row(sample.image, tuple(panels), sample.mask), panel, small)
            if number == 0:
                axis.set_title(headings[column], fontsize=9, fontweight="bold", parse_math=False)
            figure.text(
                (left + SIDE / 2) / width, (bottom - 0.06) / height, words,
                fontsize=8.5, ha="center", va="top", color=color, parse_math=False,
            )  # fmt: skip
    left = 0.15 + (SIDE + 0.15) * 1.25
    bar = figure.add_axes((left / width, 0.52 / height, SIDE * 1.6 / width, 0.1 / height))
    draw_bar(figure, bar, scale, 7, 2)
    return figure


def _last_map(view: View) -> np.ndarray:
    maps = times_even(view.maps)
    return maps.get("pass_two", maps["pass_one"])


def _caption(view: View, label: str, name: str) -> tuple[str, str]:
    """Say what a view predicts, whether that is right, and how much attention lies on the object."""
    verdict = view.last or view.first
    assert verdict is not None
    right = verdict.label == label
    words = f"{'✓' if right else '✗'} {verdict.label}"
    if name in view.shares:
        words += f"\n{view.shares[name]:.0%} of attention on the object"
    return words, RIGHT if right else WRONG
