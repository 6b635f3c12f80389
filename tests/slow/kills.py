"""Killing `toast` at a random moment: in a process forked from one that has imported everything already."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cli.conftest import Said
from tests.forks import begin


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (None: killed), what it said, and after how many seconds."""

    code: int | None
    said: str
    seconds: float


def forked(folder: Path, *words: str | Path, killed_after: float | None = None) -> Ended:
    """Run `toast` in `folder`, in a process of its own; SIGKILL it, and those that it started, after so many seconds.

    Raises:
        TimeoutError: it does not end.
    """
    command = begin(folder / f".said-{time.monotonic_ns()}", *words, folder=folder)
    started = time.monotonic()
    ended = command.end() if killed_after is None else command.ended(killed_after)
    if ended is None:
        command.kill()
    return Ended(ended, command.out + command.err, time.monotonic() - started)


def moments(count: int, seconds: float, seed: int) -> list[float]:
    """Random moments in the life of a command that takes so many seconds, the last of it twice as dense."""
    rng = random.Random(seed)
    early = [rng.uniform(0.02, seconds) for _ in range(count - count // 3)]
    return early + [rng.uniform(0.8 * seconds, 1.02 * seconds) for _ in range(count // 3)]


def explained(ended: Ended) -> None:
    """It worked, or ended as documented with a message of a few lines."""
    assert ended.code in (0, 1, 2), ended
    assert "Traceback" not in ended.said and "Internal error" not in ended.said, ended.said
    if ended.code:
        Said(ended.code, "", ended.said).fails(ended.code, "Error: ")
