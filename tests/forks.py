"""Processes of their own that know nothing of this one, without the seconds that `import torch` and others take.

They are forked from a server that has imported everything already, and nothing else. What a test needs to be new in
all, its imports and the launcher included, it starts by `python -m`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

LONGEST = 240.0
"""Seconds after which a command counts as hanging."""


def fork(work: Callable[..., Any], *given: Any) -> BaseProcess:
    """A process, begun, that does this work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm"])
    process = context.Process(target=_alone, args=(work, *given))
    process.start()
    return process


def _alone(work: Callable[..., Any], *given: Any) -> None:
    import torch

    # The workers that it starts are started as anywhere, not by a server of its own that imports all of it again.
    multiprocessing.set_start_method(None, force=True)
    # torch's pool of threads does not outlive a fork: made anew now, before two threads try to at the same time.
    torch.set_num_threads(1)
    work(*given)


@dataclass(frozen=True)
class Command:
    """`toast` at work in a process of its own, which leads a group of processes."""

    process: BaseProcess
    folder: Path
    """Where it writes down what it says."""

    @property
    def out(self) -> str:
        return _read(self.folder / "out")

    @property
    def err(self) -> str:
        return _read(self.folder / "err")

    def ended(self, within: float) -> int | None:
        """Its exit code, less than 0 where a signal ended it; None if it is still at work after so many seconds."""
        self.process.join(within)
        return self.process.exitcode

    def end(self) -> int:
        """Its exit code, which is waited for.

        Raises:
            TimeoutError: it does not end, and was killed.
        """
        code = self.ended(LONGEST)
        if code is None:
            self.kill()
            raise TimeoutError(f"It does not end. It said: {self.err}")
        return code

    def kill(self) -> None:
        """SIGKILL for it and for those that it started."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()


def begin(said: Path, *words: str | Path, folder: Path | None = None, **environment: str) -> Command:
    """Begin `toast` in `folder`, or where this process is; what it says is written down in the new folder `said`."""
    said.mkdir()
    process = fork(_toast, folder or Path.cwd(), said, {**os.environ, **environment}, [str(word) for word in words])
    return Command(process, said)


def begin_two(said: Path, *words: str | Path) -> list[Command]:
    """Begin `toast` in two processes that work together, as a launcher would."""
    said.mkdir()
    return [begin(said / shared["RANK"], *words, **shared) for shared in two_of_a_group()]


def two_of_a_group() -> list[dict[str, str]]:
    """What a launcher puts in the environments of two processes that work together."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]


def free_port() -> int:
    """A port that no other test's processes meet on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _toast(folder: Path, said: Path, environment: Mapping[str, str], words: list[str]) -> None:
    from toast_cli.cli.app import main
    from toast_cli.export import verification_worker

    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), number)
    # An export's checks in the same process: a new one would spend most of its time on imports.
    verification_worker.run_in_new_process = verification_worker.open_and_run_export
    sys.argv = ["toast", *words]
    main()
