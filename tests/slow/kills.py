"""Killing `toast` at a random moment: in a process forked from one that has imported everything already."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from tests.cli.conftest import Said, toast

LONGEST = 240.0
"""Seconds after which a command counts as hanging."""


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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.slow.warm"])
    log = folder / f".said-{time.monotonic_ns()}"
    settings = {name: os.environ.get(name) for name in ("TOAST_CACHE_DIR", "HF_HUB_OFFLINE", "NO_COLOR")}
    child = context.Process(target=_toast, args=(folder, log, settings, words))
    child.start()
    started = time.monotonic()
    child.join(LONGEST if killed_after is None else killed_after)
    ended = child.exitcode
    if ended is None:
        assert child.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        child.join()
        if killed_after is None:
            raise TimeoutError(f"{words} does not end.")
    said = log.read_text() if log.is_file() else ""
    log.unlink(missing_ok=True)
    return Ended(ended, said, time.monotonic() - started)


def _toast(folder: Path, log: Path, settings: dict[str, str | None], words: tuple[str | Path, ...]) -> None:
    import torch

    from toast_cli.export import checking

    os.setsid()
    os.chdir(folder)
    for name, value in settings.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    # An export's checks in the same process: a new one would spend most of its time on imports.
    checking.in_new_process = checking.open_and_run
    # torch's pool of threads does not outlive a fork: made anew now, before two threads try to at the same time.
    torch.set_num_threads(1)
    code = 99
    try:
        said = toast(*words)
        code = said.code
        log.write_text(said.out + said.err)
    except BaseException:
        log.write_text(traceback.format_exc())
    os._exit(code)


def moments(count: int, seconds: float, seed: int) -> list[float]:
    """Random moments in the life of a command that takes so many seconds, the last of it twice as dense."""
    rng = random.Random(seed)
    early = [rng.uniform(0.02, seconds) for _ in range(count - count // 3)]
    return early + [rng.uniform(0.8 * seconds, 1.02 * seconds) for _ in range(count // 3)]


def explained(ended: Ended) -> None:
    """It worked, or ended as documented with a message of a few lines."""
    assert ended.code in (0, 1, 2), ended
    assert "Traceback" not in ended.said and "fault in toast" not in ended.said, ended.said
    if ended.code:
        Said(ended.code, "", ended.said).fails(ended.code, "Error: ")
