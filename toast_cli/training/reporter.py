"""The interface through which a run reports progress: the command line draws progress bars, a script can ignore it."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any, TypeVar

T = TypeVar("T")
B = TypeVar("B", bound=Sized)


class Reporter:
    """A reporter that prints nothing. Subclass it to follow a run."""

    def report_message(self, text: str) -> None:
        """Report a message to the user."""

    def track_progress(self, items: Iterable[T], total: int, what: str) -> Iterable[T]:
        """Yield the items, and report the progress of `what`."""
        return items

    def track_samples(self, batches: Iterable[B], total: int, what: str) -> Iterable[B]:
        """Yield batches of samples, and report how many of the `total` samples are done, and how many per second."""
        return batches

    def report_step(self, step: int, total: int, metrics: dict[str, Any]) -> None:
        """Report an optimizer step, with the metrics of the epoch so far."""

    def report_interruption(self, command: str) -> None:
        """Report that the run was interrupted and can be resumed with `command`."""
        self.report_message(f"Stopped; the work so far is saved. Resume with: {command}")

    def report_epoch(self, epoch: int, epochs: int, metrics: dict[str, Any], best: bool) -> None:
        """Report the end of an epoch, with its metrics."""
