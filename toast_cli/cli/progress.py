"""A run drawn in the terminal: messages, progress with time left, loss and accuracy. Everything goes to stderr."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from toast_cli.cli.console import err, say
from toast_cli.cli.tables import headline
from toast_cli.training.reporter import Reporter

T = TypeVar("T")


class TerminalReporter(Reporter):
    """Prints a line per epoch and, on a terminal, a live bar above it."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=err,
            transient=True,
        )
        self._training: Any = None

    def __enter__(self) -> TerminalReporter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def message(self, text: str) -> None:
        """Print one sentence."""
        say(text, err)

    def track(self, items: Iterable[T], total: int, what: str) -> Iterable[T]:
        """Show a bar while items pass."""
        if self._training is not None:
            self._progress.remove_task(self._training)
            self._training = None
        task = self._progress.add_task(what, total=total, note="")
        for item in items:
            yield item
            self._progress.advance(task)
        self._progress.remove_task(task)

    def step(self, step: int, total: int, metrics: dict[str, Any]) -> None:
        """Move the training bar."""
        if self._training is None:
            self._training = self._progress.add_task("training", total=total, note="")
        note = f"loss {metrics['loss']:.3f}  {headline(metrics)}"
        self._progress.update(self._training, completed=step, note=note)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, Any], best: bool) -> None:
        """Print one line about the epoch."""
        train, validation = metrics["train"], metrics.get("validation")
        text = f"epoch {epoch:>3}/{epochs}  train loss {train['loss']:.4f}  {headline(train)}"
        if validation is not None:
            text += f"  validation loss {validation['loss']:.4f}  {headline(validation)}"
            text += "  best so far" if best else ""
        self.message(text)
