"""What a task is: a head on the pooled features, a loss, and the numbers reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toast_cli.options import Named


@dataclass(frozen=True)
class Task:
    """A registered task: its settings, and `build(options, head_width, classes)` for head, loss and metrics."""

    options: type[Named]
    build: Callable[[Any, int, tuple[str, ...]], Any]
