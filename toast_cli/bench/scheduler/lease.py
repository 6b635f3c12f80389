"""Leases: while a worker holds the lease of a run, no other worker makes that run."""

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
"""Seconds between two heartbeats of a running trial."""


class LeaseLostError(Exception):
    """Another worker considered this one dead and took over its run."""


class JobLease:
    """A run that this worker has taken.

    Args:
        study: the study of the run.
        trial: the attempt at the run.
        job: the run.
        lock: held until the lease ends; the attempt records its path.
    """

    def __init__(self, study: optuna.Study, trial: Trial, job: Job, lock: FileLock) -> None:
        self.study, self.trial, self.job = study, trial, job
        self.lost = threading.Event()
        """Set if another worker took over the run. Its result here is then discarded."""
        self._lock, self._more_locks = lock, contextlib.ExitStack()
        self._over = threading.Event()

    def choose_params(self, search: SearchOptions | None) -> dict[str, Any]:
        """Return the run's hyper-parameters: the job's own, or those that the sampler of `search` draws."""
        if self.job.params is not None:
            return dict(self.job.params)
        assert search is not None
        if search.sampler != "qmc":
            # Each run has its own seed; with a shared seed, workers would draw the same values.
            self.study.sampler = make_sampler(search, search.seed * 100_003 + (self.job.slot or 0))
        return {
            name: self.trial.suggest_float(name, values.low, values.high, log=values.log)
            if isinstance(values, ValueRange)
            else self.trial.suggest_categorical(name, list(values))
            for name, values in search.space.items()
        }

    def acquire(self, machine: str) -> bool:
        """Lock the run and record the worker and its machine; return False if another worker holds the lock."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._end_trial("stopped", "another worker holds the lock")
            time.sleep(1)
            return False
        worker = f"process {os.getpid()} on {platform.node()}"
        # The machine is set last, so that a trial with a machine also has a lock.
        for name, value in {"worker": worker, "beat": 1, "lock": self._lock.lock_file, "machine": machine}.items():
            self.trial.set_user_attr(name, value)
        return True

    def wait_for_lock(self, lock: FileLock) -> None:
        """Acquire another lock and hold it until the lease ends."""
        self._more_locks.enter_context(lock)

    @contextlib.contextmanager
    def keep_alive(self) -> Iterator[None]:
        """Send heartbeats within the block; release the locks after it."""
        thread = threading.Thread(target=self._send_heartbeats, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self._more_locks.close()
            self._lock.release()

    def record_result(self, value: float, record: Mapping[str, Any]) -> None:
        """Record the result of a finished run."""
        self._report_to_study(TrialState.COMPLETE, record, [value])

    def mark_pruned(self, record: Mapping[str, Any]) -> None:
        """Record that the pruner stopped the run."""
        self._report_to_study(TrialState.PRUNED, record)

    def mark_failed(self, reason: str) -> None:
        """Record that the run failed. It is made again only after `--retry`."""
        self._end_trial("failed", reason)

    def mark_interrupted(self, why: str = "the worker was asked to stop") -> None:
        """Record that this worker stopped. Any worker may resume the run."""
        self._end_trial("stopped", why)

    def _end_trial(self, fate: str, reason: str) -> None:
        fail_trial(self.study, self.trial, fate, reason)

    def _report_to_study(self, state: TrialState, record: Mapping[str, Any], values: list[float] | None = None) -> None:
        # Optuna refuses this if another worker took over the run, whose result counts.
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
                # The storage may be unreachable for a moment. If it stays so, recording the result raises.
                continue


def fail_trial(study: optuna.Study, trial: Trial, fate: str, reason: str) -> None:
    """Record that an attempt ended without a result, unless another worker has ended it already."""
    with contextlib.suppress(UpdateFinishedTrialError):
        for name, value in {"fate": fate, "reason": reason}.items():
            trial.set_user_attr(name, value)
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def make_sampler(search: SearchOptions | None, seed: int = 0) -> optuna.samplers.BaseSampler:
    """Return the Optuna sampler of a search."""
    if search is None or search.sampler in ("grid", "random"):
        # The points of a grid are enqueued, so this sampler draws nothing.
        return optuna.samplers.RandomSampler(seed)
    if search.sampler == "qmc":
        return optuna.samplers.QMCSampler(seed=search.seed)
    # constant_liar: trials that other workers are running count as tried.
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def make_pruner(search: SearchOptions | None) -> optuna.pruners.BasePruner:
    """Return the Optuna pruner of a search."""
    if search is None or search.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner() if search.pruner == "median" else optuna.pruners.HyperbandPruner()
