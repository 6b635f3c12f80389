"""The columns of a table of predictions, and the cells of a batch: classes, labels or numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toast_cli.evaluation.prediction_table import LABEL_SEPARATOR
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
    def format_cells(self, scores: Tensor) -> list[list[Cell]]:
        """Return the cells of every image, given the scores of a batch `[B, classes]`."""

    @abstractmethod
    def summarize_cells(self, cells: Sequence[Cell]) -> list[str]:
        """Return the cells of an image in a few texts, for a terminal."""


class ClassAnswers(Answers):
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


class LabelAnswers(Answers):
    """The labels that are likely enough, and the most likely ones with their probabilities."""

    def __init__(self, classes: Sequence[str], top: int, probabilities: bool, thresholds: Tensor | float) -> None:
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
                (scores >= self.thresholds).tolist(), self._likely.format_cells(scores), strict=True
            )
        ]

    def summarize_cells(self, cells: Sequence[Cell]) -> list[str]:
        """Return the labels, and the most likely ones with their probabilities."""
        return [str(cells[0]), *self._likely.summarize_cells(cells[1:])]


class NumberAnswers(Answers):
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


def make_answers(objective: Objective, classes: Sequence[str], top: int, probabilities: bool) -> Answers:
    """Return what a model's objective answers.

    Raises:
        UsageError: it labels pixels, writes texts, or predicts no classes.
    """
    if objective.target == "class" and objective.class_scores:
        return ClassAnswers(classes, top, probabilities)
    if objective.target == "labels":
        return LabelAnswers(classes, top, probabilities, getattr(objective, "thresholds", LABEL_THRESHOLD))
    if objective.target == "number":
        return NumberAnswers(classes)
    if objective.target == "text":
        raise UsageError(
            "'toast predict' labels images, and this is a language model.",
            what_to_do="Use 'toast generate --prompts FILE'.",
            code="task.answers-text",
        )
    raise UsageError(
        "'toast predict' labels whole images, and this model labels pixels or tokens.",
        what_to_do="In Python, call toast_cli.load(RUN).segment(images).",
        code="task.labels-pixels",
    )


def round_number(value: float) -> float | None:
    """Return a number with six significant digits; None if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def format_probability(value: Cell) -> str:
    """Format a probability in percent."""
    return f"{value:.1%}" if isinstance(value, float) else "-"


def _make_probability_columns(classes: Sequence[str]) -> list[Column]:
    return [Column(f"p_{name}", "number") for name in classes]
