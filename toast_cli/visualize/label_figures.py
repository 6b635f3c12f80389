"""Figure of several labels per image: the right, missed and wrong answers of each label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from toast_cli.utils.names import shorten_name
from toast_cli.visualize.answer_figures import MAX_LABEL_LENGTH, MAX_MATRIX_CLASSES, format_count

OUTCOMES = ("right", "missed", "wrong", "right")
OUTCOME_HEADINGS = ("given, has it", "not given, has it", "given, lacks it", "not given, lacks it")
"""Headings of the outcomes of `count_label_outcomes`, in their order."""


def draw_label_outcomes(counts: np.ndarray, names: Sequence[str], what: str) -> Figure:
    """Draw the outcomes of each label, a row per label. Colours are shares of the images that have it, or lack it.

    Of more than `MAX_MATRIX_CLASSES` labels, those with the most errors are drawn. The title says so.

    Args:
        counts: Images that have a label and were given it, have it and were not, lack it and were, and neither, for
            every label, `[labels, 4]`.
        names: The names of the labels.
        what: What was counted, such as `371 images of the test split`.
    """
    order = np.argsort(-counts[:, 1:3].sum(axis=1), kind="stable")[:MAX_MATRIX_CLASSES]
    shown = np.sort(order) if len(names) <= MAX_MATRIX_CLASSES else order
    cells = counts[shown]
    totals = np.repeat(np.stack([cells[:, :2].sum(axis=1), cells[:, 2:].sum(axis=1)], axis=1), 2, axis=1)
    share = np.divide(cells, totals, out=np.zeros(cells.shape), where=totals > 0)
    shade = 0.1 + 0.8 * np.sqrt(share)  # so that few errors show
    right = np.array([outcome == "right" for outcome in OUTCOMES])[None, :, None]
    colours = np.where(right, colormaps["Blues"](shade), colormaps["Oranges"](shade))
    figure = Figure(figsize=(7, 0.34 * len(shown) + 2.0), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.where(cells[..., None] > 0, colours, 1.0), aspect="auto")
    for (row, column), count in np.ndenumerate(cells):
        ink = "white" if share[row, column] > 0.4 else "black"
        axes.text(column, row, format_count(int(count)), ha="center", va="center", color=ink, fontsize=7)
    axes.set_xticks(range(4), OUTCOME_HEADINGS, fontsize=7)
    axes.set_yticks(range(len(shown)), [shorten_name(names[i], MAX_LABEL_LENGTH) for i in shown], fontsize=7)
    axes.tick_params(length=0)
    few = f"\nShown: the {len(shown)} of {len(names):,} labels with the most errors." * (len(shown) < len(names))
    legend = "Colour: share of the images that have the label, or lack it; blue: right, orange: wrong."
    figure.suptitle(f"{what}.{few}\n{legend}", fontsize=8, x=0.01, ha="left")
    return figure
