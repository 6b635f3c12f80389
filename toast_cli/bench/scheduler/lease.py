"""A lease: a run that one worker has taken, until it tells how the run ended. Nobody else works on it meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from toast_cli.bench.scheduler.database import make_checksummed_record
from toast_cli.bench.scheduler.jobs import Job
from toast_cli.bench.suite import SearchOptions, ValueRange

HEARTBEAT_SECONDS = 10.0
"""Seconds between two signs of life of a running trial."""


class LeaseLostError(Exception):
    """Another worker took this one for dead, and the run from it."""


class JobLease:
    """A run that this worker has taken.

    Args:
        study, trial: the attempt.
        job: the run.
        lock: held while the run is worked on; the attempt says where it lies.
    """

    def __init__(self, study: optuna.Study, trial: Trial, job: Job, lock: FileLock) -> None:
        self.study, self.trial, self.job = study, trial, job
        self.lost = threading.Event()
        """Set when another worker took this one for dead: what goes on here counts no more."""
        self._lock, self._more_locks = lock, contextlib.ExitStack()
        self._over = threading.Event()

    def params(self, search: SearchOptions | None) -> dict[str, Any]:
        """The run's hyper-parameters: the job's own, or what the search's sampler draws."""
        if self.job.params is not None:
            return dict(self.job.params)
        assert search is not None
        if search.sampler != "qmc":
            # Drawn by the run's own seed: workers that draw from one and the same seed would draw the same.
            self.study.sampler = make_sampler(search, search.seed * 100_003 + (self.job.slot or 0))
        return {
            name: self.trial.suggest_float(name, values.low, values.high, log=values.log)
            if isinstance(values, ValueRange)
            else self.trial.suggest_categorical(name, list(values))
            for name, values in search.space.items()
        }

    def begin(self, machine: str) -> bool:
        """Lock the run and say whose it is, on which machine; whether nobody else holds it."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._end_trial("stopped", "another worker holds its lock")
            time.sleep(1)
            return False
        worker = f"process {os.getpid()} on {platform.node()}"
        # The machine comes last: whoever finds it named finds the lock named, too.
        for name, value in {"worker": worker, "beat": 1, "lock": self._lock.lock_file, "machine": machine}.items():
            self.trial.set_user_attr(name, value)
        return True

    def wait_for_lock(self, lock: FileLock) -> None:
        """Wait for a further lock, and hold it until the run is free."""
        self._more_locks.enter_context(lock)

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Within, show signs of life; afterwards the run is free."""
        thread = threading.Thread(target=self._send_heartbeats, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self._more_locks.close()
            self._lock.release()

    def done(self, value: float, record: Mapping[str, Any]) -> None:
        """The run got to its end."""
        self._tell(TrialState.COMPLETE, record, [value])

    def pruned(self, record: Mapping[str, Any]) -> None:
        """The run was stopped early, being worse than others."""
        self._tell(TrialState.PRUNED, record)

    def failed(self, reason: str) -> None:
        """The run cannot be made; it waits for someone to ask for it again."""
        self._end_trial("failed", reason)

    def stopped(self, why: str = "its worker was asked to stop") -> None:
        """This worker goes no further; any other may go on with the run."""
        self._end_trial("stopped", why)

    def _end_trial(self, fate: str, reason: str) -> None:
        fail_trial(self.study, self.trial, fate, reason)

    def _tell(self, state: TrialState, record: Mapping[str, Any], values: list[float] | None = None) -> None:
        # Refused where another worker took the run over: then that one's word counts.
        with contextlib.suppress(UpdateFinishedTrialError):
            self.trial.set_user_attr("record", make_checksummed_record(record, values[0] if values else None))
            self.study.tell(self.trial, values, state, skip_if_finished=True)

    def _send_heartbeats(self) -> None:
        beat = 1
        while not self._over.wait(HEARTBEAT_SECONDS):
            beat += 1
            try:
                self.trial.set_user_attr("beat", beat)
            except UpdateFinishedTrialError:
                self.lost.set()
                return
            except Exception:
                # A storage that cannot be reached for a moment; if it stays so, telling the end will say it.
                continue


def fail_trial(study: optuna.Study, trial: Trial, fate: str, reason: str) -> None:
    """End one's own attempt that came to nothing, unless someone else was quicker."""
    with contextlib.suppress(UpdateFinishedTrialError):
        for name, value in {"fate": fate, "reason": reason}.items():
            trial.set_user_attr(name, value)
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def make_sampler(search: SearchOptions | None, seed: int = 0) -> optuna.samplers.BaseSampler:
    """The sampler of a search."""
    if search is None or search.sampler in ("grid", "random"):
        # A grid's points are put in as they are, so nothing is left to draw.
        return optuna.samplers.RandomSampler(seed)
    if search.sampler == "qmc":
        return optuna.samplers.QMCSampler(seed=search.seed)
    # Liar: what others are trying at this moment counts as tried.
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def make_pruner(search: SearchOptions | None) -> optuna.pruners.BasePruner:
    """The pruner of a search."""
    if search is None or search.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner() if search.pruner == "median" else optuna.pruners.HyperbandPruner()
