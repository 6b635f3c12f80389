"""The progress of a run in a program: nothing, or a line per message and epoch on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from toast_cli.training.reporter import Reporter
from toast_cli.utils.names import escape_newlines


class LineReporter(Reporter):
    """A reporter that prints messages and the numbers of every epoch on stderr, in the first process alone."""

    def report_message(self, text: str) -> None:
        """Print a message."""
        if int(os.environ.get("RANK", "0")) == 0:
            print(escape_newlines(text), file=sys.stderr, flush=True)

    def report_epoch(self, epoch: int, epochs: int, metrics: dict[str, Any], best: bool) -> None:
        """Print the numbers of an epoch on one line."""
        parts = [f"train {_format_numbers(metrics['train'])}"]
        if metrics.get("validation") is not None:
            parts.append(f"validation {_format_numbers(metrics['validation'])}{'  best so far' * best}")
        self.report_message(f"epoch {epoch}/{epochs}  {'  '.join(parts)}")


def _format_numbers(metrics: Mapping[str, Any]) -> str:
    numbers = {name: value for name, value in metrics.items() if isinstance(value, float) and name != "seconds"}
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(numbers.items()))
