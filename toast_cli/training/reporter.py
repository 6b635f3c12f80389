"""What a run tells whoever watches it; the command line draws progress bars from it, a script may ignore it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class Reporter:
    """Says nothing. Subclass it to watch a run."""

    def message(self, text: str) -> None:
        """One sentence that the user should read."""

    def track(self, items: Iterable[T], total: int, what: str) -> Iterable[T]:
        """Pass items through while `what` makes progress."""
        return items

    def step(self, step: int, total: int, metrics: dict[str, Any]) -> None:
        """One optimizer step is done; the metrics are this epoch's so far."""

    def stopped(self, command: str) -> None:
        """The run was interrupted; what was done is kept, and it goes on with this command."""
        self.message(f"Stopped, and kept what was done. It goes on with: {command}")

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, Any], best: bool) -> None:
        """One epoch is done and was evaluated."""
