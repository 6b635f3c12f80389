"""A pool of worker processes on one machine, which share its GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

MAX_RESTARTS = 3
"""How often a worker that was killed by a signal is restarted."""


class WorkerProcess:
    """The process of a worker, with its output in a log file."""

    def __init__(self, number: int, command: Sequence[str], log: Path) -> None:
        self.number, self.command, self.log = number, command, log
        self.restarts = 0
        log.parent.mkdir(parents=True, exist_ok=True)
        self.process = self._start_process()

    def _start_process(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                env={**os.environ, **get_device_environment(self.number)},
                start_new_session=True,
            )

    def poll_or_restart(self) -> int | None:
        """Return the exit code, or None while the process runs; restart it if a signal killed it."""
        code = self.process.poll()
        if code is not None and code < 0 and self.restarts < MAX_RESTARTS:
            self.restarts += 1
            self.process = self._start_process()
            return None
        return code


def run_worker_pool(count: int, arguments: Sequence[str], logs: Path, watch: Callable[[], None]) -> list[int]:
    """Start `count` workers as `python -m toast_cli ARGUMENTS`, wait for them and return their exit codes.

    `watch` is called once a second.

    Raises:
        KeyboardInterrupt: the pool was interrupted; the workers received the same signal and have ended.
    """
    command = [sys.executable, "-m", "toast_cli", *arguments]
    workers = [WorkerProcess(number, command, logs / f"{number}.log") for number in range(count)]
    try:
        while any(worker.poll_or_restart() is None for worker in workers):
            watch()
            time.sleep(1)
    except KeyboardInterrupt:
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGINT)
        for worker in workers:
            worker.process.wait()
        raise
    return [worker.process.returncode for worker in workers]


def get_device_environment(number: int) -> dict[str, str]:
    """Return environment variables that assign a GPU to worker `number`, in turn; empty without GPUs."""
    count = torch.cuda.device_count()
    if not count:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = visible.split(",") if visible else [str(index) for index in range(count)]
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]}
