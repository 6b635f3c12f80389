"""The ledger: an Optuna storage, shared by any number of workers, that records the state of every run.

A study contains the runs of one (data set, row, stage). A trial is one attempt at one run. Runs to make are enqueued as
waiting trials. A worker takes a trial by setting it to running, which the storage allows only one worker to do. If two
workers enqueue the same run at the same time, the trial with the lowest number counts.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from toast_cli.bench.scheduler.database import convert_read_errors, make_sqlite_url, open_storage, read_trial_record
from toast_cli.bench.scheduler.job_status import JOB_STATE_BY_TRIAL_STATE, JobStatus, compute_job_status
from toast_cli.bench.scheduler.jobs import Job
from toast_cli.bench.scheduler.lease import JobLease, fail_trial, make_pruner, make_sampler
from toast_cli.bench.suite import SearchOptions

DEFAULT_GRACE_SECONDS = 90.0
"""Seconds without a heartbeat after which a worker on another machine is considered dead."""

RECIPE_ATTRIBUTE = "recipe"
"""Attribute of an attempt, set when it starts: the key of its recipe."""


class Ledger:
    """The studies of a ledger.

    Args:
        url: `sqlite:///FILE`, another database URL of SQLAlchemy, `journal:FILE`, or `memory:`.
        locks: folder of the lock files, one per run; in the experiment folder, whose runs they protect.
        grace: seconds without a heartbeat after which a worker on another machine is considered dead.

    Raises:
        ToastError: the ledger cannot be opened.
    """

    def __init__(self, url: str, locks: Path, grace: float = DEFAULT_GRACE_SECONDS) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.url, self.locks, self.grace = url, locks, grace
        self.storage = open_storage(url)
        self.machine = _get_machine_id()
        self._studies: dict[str, optuna.Study] = {}
        self._last_heartbeats: dict[tuple[str, int], tuple[int, float]] = {}

    def open_study(self, name: str, search: SearchOptions | None = None) -> optuna.Study:
        """Return a study by name, created if missing, with the sampler and pruner of `search`."""
        if name not in self._studies:
            with convert_read_errors(self.url), contextlib.suppress(DuplicatedStudyError):
                optuna.create_study(storage=self.storage, study_name=name, direction="maximize")
            with convert_read_errors(self.url):
                self._studies[name] = optuna.load_study(
                    study_name=name, storage=self.storage, sampler=make_sampler(search), pruner=make_pruner(search)
                )
        return self._studies[name]

    def compute_job_statuses(self, study: optuna.Study, jobs: Iterable[Job]) -> dict[Job, JobStatus]:
        """Return the status of each job."""
        by_key: dict[str, list[FrozenTrial]] = {}
        with convert_read_errors(self.url):
            for trial in study.get_trials(deepcopy=False):
                by_key.setdefault(trial.user_attrs.get("key", ""), []).append(trial)
        statuses = {job: compute_job_status(by_key.get(job.key, ())) for job in jobs}
        return {
            job: replace(standing, record=read_trial_record(standing.trial, self.url))
            if standing.state in ("done", "pruned") and standing.trial is not None
            else standing
            for job, standing in statuses.items()
        }

    def list_trials(self, *states: TrialState, begins: str = "", ends: str = "") -> list[tuple[str, FrozenTrial]]:
        """Return (study name, trial) for the trials in `states` of all studies with this prefix and suffix."""
        with convert_read_errors(self.url):
            return [
                (name, trial)
                for name in optuna.get_all_study_names(self.storage)
                if name.startswith(begins) and name.endswith(ends)
                for trial in optuna.load_study(study_name=name, storage=self.storage).get_trials(False, states)
            ]

    def find_recipe(self, recipe: str) -> tuple[str, FrozenTrial] | None:
        """Return (study name, trial) of a finished attempt at a recipe, else of a running one whose worker is alive."""
        found = None
        for study, trial in self.list_trials(TrialState.COMPLETE, TrialState.RUNNING):
            done = trial.state == TrialState.COMPLETE
            if trial.user_attrs.get(RECIPE_ATTRIBUTE, trial.user_attrs.get("key") if done else None) == recipe:
                if done:
                    return study, trial
                found = found if self.is_worker_dead(study, trial) else (study, trial)
        return found

    def enqueue_jobs(self, study: optuna.Study, jobs: Iterable[Job], retry: bool = False) -> None:
        """Enqueue the jobs in the state `wanted`; with `retry`, also the failed ones."""
        again = {"wanted", "failed"} if retry else {"wanted"}
        for job, standing in self.compute_job_statuses(study, jobs).items():
            if standing.state in again:
                params = job.params
                if params is None:  # an interrupted attempt keeps the parameters that it drew
                    params = standing.trial.params if standing.trial is not None else {}
                study.enqueue_trial(dict(params), user_attrs={"key": job.key, "seed": job.seed, "retry": retry})

    def take_waiting_run(self, study: optuna.Study, jobs: Iterable[Job]) -> JobLease | None:
        """Take one of the waiting runs; return its lease, or None if there is no such run."""
        wanted = {job.key: job for job in jobs}
        while any(trial.user_attrs.get("key") in wanted for trial in _list_waiting_trials(study)):
            trial = study.ask()
            key = trial.user_attrs.get("key")
            earlier = [
                other
                for other in study.get_trials(deepcopy=False)
                if other.number < trial.number
                and other.user_attrs.get("key") == key
                and other.state in JOB_STATE_BY_TRIAL_STATE
            ]
            if key not in wanted or earlier:
                why = "another trial has the same run, or the run is no longer requested"
                fail_trial(study, trial, "duplicate", why)
                continue
            claim = JobLease(study, trial, wanted[key], self.get_run_lock(key))
            if claim.acquire(self.machine):
                return claim
        return None

    def fail_dead_trials(self, study: optuna.Study) -> int:
        """Mark the trials of dead workers as failed; return the number of trials that are still running."""
        alive = 0
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self.is_worker_dead(study.study_name, trial):
                with contextlib.suppress(UpdateFinishedTrialError):
                    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            else:
                alive += 1
        return alive

    def get_run_lock(self, key: str) -> FileLock:
        """Return the lock of a run, for the workers that share its folder."""
        self.locks.mkdir(parents=True, exist_ok=True)
        return FileLock(self.locks.absolute() / f"{key}.lock")

    def is_worker_dead(self, study: str, trial: FrozenTrial) -> bool:
        """Return whether the worker of a running trial is dead."""
        attrs = trial.user_attrs
        if attrs.get("machine") == self.machine and Path(attrs.get("lock", "")).is_file():
            # The system releases the locks of a dead process, so there is no need to wait for heartbeats. The worker
            # recorded the path of its lock, which may be in another experiment folder on this ledger.
            try:
                with FileLock(attrs["lock"]).acquire(timeout=0):
                    return True
            except Timeout:
                return False
            except OSError:
                pass  # the lock of another user cannot be opened; use the heartbeats
        beat, now = attrs.get("beat", 0), time.monotonic()
        last_beat, since = self._last_heartbeats.setdefault((study, trial.number), (beat, now))
        if beat != last_beat:
            self._last_heartbeats[study, trial.number] = beat, now
            return False
        return now - since > self.grace


def open_ledger(out: Path, url: str | None, grace: float = DEFAULT_GRACE_SECONDS) -> Ledger:
    """Open the ledger at `url`, by default SQLite in the experiment folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    return Ledger(url or make_sqlite_url(out.absolute() / "ledger.db"), out / "locks", grace)


def _list_waiting_trials(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def _get_machine_id() -> str:
    """Return an id that is equal for processes on the same running kernel, which see each other's locks."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()}/{boot.read_text(encoding='ascii').strip() if boot.is_file() else ''}"
