"""The columns of a table of predictions, and their cells: classes, labels, numbers, class maps or texts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from toast_cli.evaluation.prediction.table import LABEL_SEPARATOR
from toast_cli.utils.errors import UsageError
from toast_cli.utils.names import make_names_unique
from toast_cli.utils.table_files import Cell, Column

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.tasks.base import Objective

LABEL_THRESHOLD = 0.5
"""Probability from which an image has a label."""


class Answers(ABC):
    """What a model answers for an image: the columns, and the cells of each image.

    `labels` is the column whose values are counted, if there is one. `headings` are those of `summarize_cells`.
    """

    columns: tuple[Column, ...]
    headings: tuple[str, ...]
    labels: Column | None = None

    @abstractmethod
    def summarize_cells(self, cells: Sequence[Cell]) -> list[str]:
        """Return the cells of an image in a few texts, for a terminal."""


class ScoreAnswers(Answers):
    """Answers from a score for every class, label or number."""

    @abstractmethod
    def format_cells(self, scores: Tensor) -> list[list[Cell]]:
        """Return the cells of every image, given the scores of a batch `[B, classes]`."""


class ClassAnswers(ScoreAnswers):
    """The most likely classes with their probabilities, and the probability of every class if `probabilities`."""

    def __init__(self, classes: Sequence[str], top: int, probabilities: bool) -> None:
        self.classes, self.top, self.probabilities = tuple(classes), min(top, len(classes)), probabilities
        self.labels = Column("class")
        self.headings = ("class", "probability", "next likely")[: 2 + (self.top > 1)]
        columns = [self.labels, Column("probability", "number")]
        for place in range(2, self.top + 1):
            columns += [Column(f"class_{place}"), Column(f"probability_{place}", "number")]
        self.columns = (*columns, *_make_probability_columns(classes if probabilities else ()))

    def format_cells(self, scores: Tensor) -> list[list[Cell]]:
        """Return the classes in descending order of their probabilities, each with it."""
        values, indices = scores.topk(self.top)
        every = scores.tolist() if self.probabilities else [[]] * len(scores)
        return [
            [
                *(cell for pair in zip(names, likely, strict=True) for cell in pair),
                *map(round_number, rest),
            ]
            for names, likely, rest in zip(
                ([self.classes[index] for index in row] for row in indices.tolist()),
                ([round_number(value) for value in row] for row in values.tolist()),
                every,
                strict=True,
            )
        ]

    def summarize_cells(self, cells: Sequence[Cell]) -> list[str]:
        """Return the class, its probability and, if there are more, the next likely classes."""
        pairs = list(zip(cells[0 : 2 * self.top : 2], cells[1 : 2 * self.top : 2], strict=True))
        likely = [str(pairs[0][0]), format_probability(pairs[0][1])]
        rest = ", ".join(f"{name} {format_probability(value)}" for name, value in pairs[1:])
        return [*likely, rest] if self.top > 1 else likely


class LabelAnswers(ScoreAnswers):
    """The labels that are likely enough, and the most likely ones with their probabilities."""

    def __init__(self, classes: Sequence[str], top: int, probabilities: bool, thresholds: Sequence[float]) -> None:
        self._likely, self.thresholds = ClassAnswers(classes, top, probabilities), thresholds
        self.labels = Column("labels")
        first = (Column("label_1"), Column("probability_1", "number"))
        rest = [Column(each.name.replace("class_", "label_"), each.kind) for each in self._likely.columns[2:]]
        self.columns = (self.labels, *first, *rest)
        self.headings = ("labels", "most likely", *self._likely.headings[1:])

    def format_cells(self, scores: Tensor) -> list[list[Cell]]:
        """Return the labels of every image, and the cells of the most likely ones."""
        classes = self._likely.classes
        return [
            [LABEL_SEPARATOR.join(classes[i] for i, holds in enumerate(chosen) if holds), *cells]
            for chosen, cells in zip(
                (scores >= scores.new_tensor(self.thresholds)).tolist(), self._likely.format_cells(scores), strict=True
            )
        ]

    def summarize_cells(self, cells: Sequence[Cell]) -> list[str]:
        """Return the labels, and the most likely ones with their probabilities."""
        return [str(cells[0]), *self._likely.summarize_cells(cells[1:])]


class NumberAnswers(ScoreAnswers):
    """The numbers, in the units of the data."""

    def __init__(self, names: Sequence[str]) -> None:
        self.columns = tuple(Column(name, "number") for name in make_names_unique(["path", "error", *names])[2:])
        self.headings = tuple(column.name for column in self.columns)

    def format_cells(self, scores: Tensor) -> list[list[Cell]]:
        """Return the numbers of every image."""
        return [list(map(round_number, row)) for row in scores.tolist()]

    def summarize_cells(self, cells: Sequence[Cell]) -> list[str]:
        """Return the numbers."""
        return ["" if cell is None else str(cell) for cell in cells]


class MapAnswers(Answers):
    """A class map and an overlay, and the classes with the largest shares of the pixels; every share if `shares`."""

    def __init__(self, classes: Sequence[str], top: int, shares: bool) -> None:
        self.classes, self.top, self.shares = tuple(classes), min(top, len(classes)), shares
        self.headings = ("class map", "largest classes")
        columns = [Column("map"), Column("overlay"), Column("class"), Column("share", "number")]
        for place in range(2, self.top + 1):
            columns += [Column(f"class_{place}"), Column(f"share_{place}", "number")]
        columns += [Column(f"share_of_{name}", "number") for name in (classes if shares else ())]
        self.columns = tuple(columns)

    def format_cells(self, classes: np.ndarray, map_file: str, overlay_file: str) -> list[Cell]:
        """Return the cells of an image, given its class map `[H, W]` and the files that were written."""
        counts = np.bincount(classes.ravel(), minlength=len(self.classes))
        shares = counts / classes.size
        largest = [int(index) for index in np.argsort(-counts, kind="stable")[: self.top]]
        pairs = [(self.classes[i], round_number(shares[i])) if counts[i] else (None, None) for i in largest]
        every = map(round_number, shares.tolist() if self.shares else ())
        return [map_file, overlay_file, *(cell for pair in pairs for cell in pair), *every]

    def summarize_cells(self, cells: Sequence[Cell]) -> list[str]:
        """Return the class map, and the largest classes with their shares."""
        pairs = zip(cells[2 : 2 + 2 * self.top : 2], cells[3 : 3 + 2 * self.top : 2], strict=True)
        return [str(cells[0]), ", ".join(f"{name} {format_probability(share)}" for name, share in pairs if name)]


class TextAnswers(Answers):
    """A prompt and its answer."""

    columns = (Column("prompt"), Column("answer"))
    headings = ("prompt", "answer")

    def summarize_cells(self, cells: Sequence[Cell]) -> list[str]:
        """Return the prompt and its answer."""
        return [str(cell) for cell in cells]


def make_answers(objective: Objective, classes: Sequence[str], top: int, every: bool) -> Answers:
    """Return what a model's objective answers; with `every`, also the score of every class.

    Raises:
        UsageError: it predicts no classes.
    """
    if objective.target == "text":
        return TextAnswers()
    if objective.target == "number":
        return NumberAnswers(classes)
    if not objective.class_scores:
        raise UsageError(
            "This model was trained with token labels and does not predict classes.",
            what_to_do="Write its features, which need no classes: --features features.safetensors",
            code="task.predicts-no-classes",
        )
    if objective.target == "pixels":
        return MapAnswers(classes, top, every)
    if objective.target == "labels":
        thresholds = objective.describe_outputs().get("thresholds", [LABEL_THRESHOLD] * len(classes))
        return LabelAnswers(classes, top, every, thresholds)
    return ClassAnswers(classes, top, every)


def round_number(value: float) -> float | None:
    """Return a number with six significant digits; None if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def format_probability(value: Cell) -> str:
    """Format a probability in percent."""
    return f"{value:.1%}" if isinstance(value, float) else "-"


def _make_probability_columns(classes: Sequence[str]) -> list[Column]:
    return [Column(f"p_{name}", "number") for name in classes]
