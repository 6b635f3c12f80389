"""Progress of a run on stderr: messages, progress bars, loss and accuracy."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from toast_cli.cli.output.console import err, print_line
from toast_cli.cli.output.run_summary import format_headline, format_selected_metric
from toast_cli.training.reporter import B, Reporter

T = TypeVar("T")

MESSAGE_INTERVAL_SECONDS = 60.0
"""Seconds between progress lines if stderr is not a terminal."""


class TerminalReporter(Reporter):
    """A reporter that prints one line per epoch, and a progress bar (on a terminal) or periodic progress lines."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=err,
            transient=True,
        )
        self._training: Any = None
        self._last_printed = time.monotonic()

    def __enter__(self) -> TerminalReporter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def report_message(self, text: str) -> None:
        """Print a message."""
        print_line(text, err)

    def track_progress(self, items: Iterable[T], total: int, what: str) -> Iterable[T]:
        """Yield the items and show a progress bar."""
        if self._training is not None:
            self._progress.remove_task(self._training)
            self._training = None
        task = self._progress.add_task(what, total=total, note="")
        start = self._last_printed = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            self._progress.advance(task)
            self._print_progress_periodically(what, done, total, (time.monotonic() - start) / done)
        self._progress.remove_task(task)

    def track_samples(self, batches: Iterable[B], total: int, what: str) -> Iterable[B]:
        """Yield batches of samples and show a progress bar of samples, with their rate."""
        task, done = self._progress.add_task(what, total=total, note=""), 0
        start = self._last_printed = time.monotonic()
        for batch in batches:
            yield batch
            done += len(batch)
            seconds = (time.monotonic() - start) / max(done, 1)
            rate = f"{1 / max(seconds, 1e-9):,.1f} per second"
            self._progress.update(task, completed=done, note=rate)
            self._print_progress_periodically(f"{what}: {rate}", done, total, seconds)
        self._progress.remove_task(task)

    def report_step(self, step: int, total: int, metrics: dict[str, Any]) -> None:
        """Update the training bar."""
        if self._training is None:
            self._training = self._progress.add_task("training", total=total, note="")
        note = f"loss {metrics['loss']:.3f}  {format_headline(metrics)}"
        self._progress.update(self._training, completed=step, note=note)
        self._print_progress_periodically(f"training: {note}", step, total)

    def report_epoch(self, epoch: int, epochs: int, metrics: dict[str, Any], best: bool) -> None:
        """Print the results of an epoch on one line."""
        train, validation = metrics["train"], metrics.get("validation")
        text = f"epoch {epoch:>3}/{epochs}  train loss {train['loss']:.4f}  {format_headline(train)}"
        if validation is not None:
            text += f"  validation loss {validation['loss']:.4f}  {format_headline(validation)}"
            text += format_selected_metric(validation, metrics.get("select"))
            text += "  best so far" if best else ""
        self.report_message(text)

    def _print_progress_periodically(self, what: str, done: int, total: int, seconds: float | None = None) -> None:
        """Print a progress line if there is no progress bar and the last line is old enough.

        `seconds` is the mean time per item; None omits the remaining time.
        """
        if err.is_terminal or done >= total or time.monotonic() - self._last_printed < MESSAGE_INTERVAL_SECONDS:
            return
        self._last_printed = time.monotonic()
        left = "" if seconds is None else f", about {timedelta(seconds=round(seconds * (total - done)))} left"
        self.report_message(f"{what}, {done:,} of {total:,}{left}")


class ProgressReporter(TerminalReporter):
    """A reporter that shows only progress, without messages and epochs."""

    def report_message(self, text: str) -> None:
        """Print nothing."""

    def report_epoch(self, epoch: int, epochs: int, metrics: dict[str, Any], best: bool) -> None:
        """Print nothing."""
