"""Figures of a model's answers to a split: the confusion matrix, the reliability diagram and the worst mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL.Image import Image

from toast_cli.utils.names import escape_newlines, shorten_name
from toast_cli.visualize.figure import shrink_image

MAX_MATRIX_CLASSES = 32
"""Largest number of classes in a matrix whose names and counts can be read."""
MAX_LABEL_LENGTH = 28
"""Largest number of characters of a class name."""
CELL_SIDES = (0.34, 0.62)
"""Smallest and largest side of a cell of the matrix, in inches."""
MATRIX_SIDE = 4.0
"""Side of a small matrix, in inches."""
MISTAKE_SIDE = 2.0
"""Width and height of the image of a mistake, in inches."""


def draw_confusion(counts: Any, classes: Sequence[str], what: str, shares: bool = False) -> Figure:
    """Draw a confusion matrix, with a row per label and a column per choice. Colours are shares of the row.

    Of more than `MAX_MATRIX_CLASSES` classes, those with the most frequent confusions are drawn, and their other
    choices are summed up in a last column. The title says so.

    Args:
        counts: A sparse matrix `[labelled, chosen]`.
        classes: The names of the classes.
        what: What was counted, such as `371 images of the test split`.
        shares: Write the share of the row in percent into a cell, in place of the count.
    """
    shown = range(len(classes)) if len(classes) <= MAX_MATRIX_CLASSES else choose_confused_classes(counts)
    support = counts.sum(axis=1)[list(shown)]
    cells = counts[list(shown)][:, list(shown)].toarray()
    columns = [shorten_name(classes[index], MAX_LABEL_LENGTH) for index in shown]
    rows = [f"{name} ({format_count(total)})" for name, total in zip(columns, support.tolist(), strict=True)]
    title = f"{what}. Rows: labels; columns: choices."
    if len(shown) < len(classes):
        others = support - cells.sum(axis=1)
        cells, columns = np.column_stack([cells, others]), [*columns, "any other class"]
        errors, drawn = counts.sum() - counts.diagonal().sum(), cells[:, :-1].sum() - cells.diagonal().sum()
        title += (
            f"\nShown: the {len(shown)} of {len(classes):,} classes with the most frequent confusions, "
            f"with {drawn:,} of the {errors:,} errors."
        )
    side = float(np.clip(MATRIX_SIDE / len(rows), *CELL_SIDES))
    figure = Figure(figsize=(side * len(columns) + 2.6, side * len(rows) + 2.4), layout="constrained")
    axes = figure.subplots()
    share = np.divide(cells, support[:, None], out=np.zeros(cells.shape), where=support[:, None] > 0)
    right, shade = np.eye(*cells.shape)[..., None] > 0, 0.1 + 0.8 * np.sqrt(share)  # so that few errors show
    colours = np.where(right, colormaps["Blues"](shade), colormaps["Oranges"](shade))
    axes.imshow(np.where(cells[..., None] > 0, colours, 1.0), aspect="equal")
    for (row, column), count in np.ndenumerate(cells):
        if count:
            ink = "white" if share[row, column] > 0.4 else "black"
            text = f"{share[row, column]:.0%}".rstrip("%") if shares else format_count(int(count))
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=6 if side < 0.4 else 8)
    steep = len(columns) > 12
    axes.set_xticks(range(len(columns)), columns, fontsize=7, rotation=90 if steep else 45, rotation_mode="anchor")
    for label in axes.get_xticklabels():
        label.set(ha="right", va="center" if steep else "top")
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
    axes.grid(which="minor", color="#ddd", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    legend = f"Colour: share of the row; blue: right, orange: wrong.{' Numbers: percent of the row.' * shares}"
    figure.suptitle(f"{title}\n{legend}", fontsize=8, x=0.01, ha="left")
    return figure


def choose_confused_classes(counts: Any) -> list[int]:
    """Return up to `MAX_MATRIX_CLASSES` classes with the most frequent confusions, those of a pair next to each other.

    Without errors, they are the classes with the most samples.
    """
    pairs = counts.tocoo()
    wrong = (pairs.row != pairs.col) & (pairs.data > 0)
    order = np.argsort(-pairs.data[wrong], kind="stable")
    both = np.stack([pairs.row[wrong], pairs.col[wrong]], axis=1)[order]
    chosen = list(dict.fromkeys(both.ravel().tolist()))[:MAX_MATRIX_CLASSES]
    return chosen or np.argsort(-counts.sum(axis=1), kind="stable")[:MAX_MATRIX_CLASSES].tolist()


def draw_reliability(
    counts: np.ndarray,
    probability: np.ndarray,
    accuracy: np.ndarray,
    error: float,
    what: str,
    several_labels: bool = False,
) -> Figure:
    """Draw a reliability diagram: the accuracy of the choices by their probability, and the samples in each bin.

    Of several labels, it is the share of samples that have a label by the probability of the label.

    Args:
        counts: Number of samples in each of the bins, which have equal width from 0 to 1.
        probability: Mean probability of the choice in each bin; NaN in an empty one.
        accuracy: Share of right choices in each bin; NaN in an empty one.
        error: The expected calibration error.
        what: What was counted, such as `371 images of the test split`.
        several_labels: Whether the probabilities are those of every label of every sample.
    """
    height, unit = ("samples that have the label", "label") if several_labels else ("accuracy of the choices", "choice")
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    width = 1 / len(counts)
    centres, filled = (np.arange(len(counts)) + 0.5) * width, counts > 0
    upper.bar(centres[filled], accuracy[filled], width * 0.94, color="C0", label=height)
    upper.plot(probability[filled], accuracy[filled], "o", color="black", markersize=3, label="mean probability")
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="perfectly calibrated")
    upper.set_ylim(0, 1)
    upper.set_xlim(0, 1)
    upper.set_ylabel("share" if several_labels else "accuracy", fontsize=8)
    upper.legend(fontsize=6.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderpad=0)
    bars = lower.bar(centres[filled], counts[filled], width * 0.94, color="#888")
    lower.bar_label(bars, [format_count(count) for count in counts[filled].tolist()], fontsize=6)
    lower.margins(y=0.2)
    lower.set_ylabel("labels" if several_labels else "samples", fontsize=8)
    lower.set_xlabel(f"probability of the {unit}", fontsize=8)
    for axis in (upper.yaxis, lower.xaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    for axes in (upper, lower):
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    total = counts.sum()
    mean, right = (float(np.nansum(values * counts) / total) for values in (probability, accuracy))
    figure.suptitle(
        f"{what}. Calibration error {error:.1%} ({len(counts)} bins):\n"
        + (
            f"the mean probability of a label is {mean:.1%}, and {right:.1%} of the labels hold."
            if several_labels
            else f"the model is {mean:.1%} sure of its choices on average, and {right:.1%} of them are right."
        ),
        fontsize=8,
        x=0.01,
        ha="left",
    )
    return figure


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: the image and its name, its label, and the answer with its probability (NaN if it has none)."""

    image: Image
    name: str
    label: str
    choice: str
    probability: float


def draw_mistakes(mistakes: Sequence[Mistake], title: str) -> Figure:
    """Draw the images of mistakes, in the order given, with their names, labels and choices."""
    columns = min(len(mistakes), 4)
    rows = math.ceil(len(mistakes) / columns)
    figure = Figure(figsize=((MISTAKE_SIDE + 0.3) * columns, (MISTAKE_SIDE + 0.6) * rows + 0.4), layout="constrained")
    figure.suptitle(f"{title}. Above each image: its label; the answer and its probability.", fontsize=8, wrap=True)
    for axes in figure.subplots(rows, columns, squeeze=False).flat[len(mistakes) :]:
        axes.set_visible(False)
    for axes, mistake in zip(figure.axes, mistakes, strict=False):
        axes.imshow(np.asarray(shrink_image(mistake.image.convert("RGB"))))
        axes.set(xticks=[], yticks=[])
        sure = "" if math.isnan(mistake.probability) else f" {mistake.probability:.1%}"
        label, choice, name = (
            shorten_name(escape_newlines(text), MAX_LABEL_LENGTH)
            for text in (mistake.label, mistake.choice, mistake.name)
        )
        axes.set_title(f"{label}\nanswer: {choice}{sure}", fontsize=7)
        axes.set_xlabel(name, fontsize=6, color="#555")
    return figure


def format_count(count: int) -> str:
    """Return a number in at most four characters or so: `371`, `12k`, `3.4M`."""
    for unit, name in ((1_000_000_000, "G"), (1_000_000, "M"), (10_000, "k")):
        if count >= unit:
            return f"{count / (1000 if name == 'k' else unit):.3g}{name}"
    return str(count)
