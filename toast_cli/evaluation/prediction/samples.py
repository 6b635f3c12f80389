"""Answers to samples as they are made: batches of rows and features, gathered from all processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from accelerate.utils import gather_object

from toast_cli.training.distributed.collectives import raise_together
from toast_cli.utils.errors import ToastError
from toast_cli.utils.table_files import Row


class PredictionSamples(Protocol):
    """What is predicted: images or prompts, by name, in one order."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every sample as it is shown; no two are equal."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what is not read."""

    @property
    def digest(self) -> str:
        """A hash of the samples in their order."""


class PredictedSample(NamedTuple):
    """A row of the table, which ends in the reason if the sample could not be used, and its features if asked for."""

    row: Row
    features: np.ndarray | None = None


def gather_predictions(batches: Iterable[dict[int, PredictedSample]]) -> Iterator[list[PredictedSample]]:
    """Yield the samples of every batch, of all processes, in their order. Every process has the same number of batches.

    This is a collective call: all processes must make it.

    Raises:
        ToastError: a process met an error. Every process raises it.
    """
    remaining = iter(batches)
    while True:
        batch, error = None, None
        try:
            batch = next(remaining, None)
        except ToastError as caught:
            error = caught
        raise_together(error)
        if batch is None:
            return
        merged: dict[int, PredictedSample] = {}
        for others in gather_object([batch]):
            merged |= others
        yield [merged[index] for index in sorted(merged)]
