"""An interruption of a prediction, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from toast_cli.training.reporter import Reporter


class Interruption(Reporter):
    """Stops after a number of batches, as a signal would."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def track_samples(self, batches: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        for number, batch in enumerate(batches):
            yield batch
            if number + 1 == self.batches:
                raise KeyboardInterrupt
