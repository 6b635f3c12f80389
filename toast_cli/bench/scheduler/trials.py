"""The ledger: which runs were made, are being made, or failed, in an Optuna storage that any number of workers share.

A study holds the runs of one (data set, row, stage), a trial is one attempt at one run. What is wanted is put in as
waiting trials, and a worker takes one by setting it to running, which a storage lets one worker do. Two workers may put
the same run in at the same moment; of its trials the lowest number then counts, which all workers see alike.
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

from toast_cli.bench.scheduler.database import convert_read_errors, open_storage, read_trial_record
from toast_cli.bench.scheduler.job_status import JOB_STATE_BY_TRIAL_STATE, JobStatus, compute_job_status
from toast_cli.bench.scheduler.jobs import Job
from toast_cli.bench.scheduler.lease import JobLease, fail_trial, make_pruner, make_sampler
from toast_cli.bench.suite import SearchOptions

DEFAULT_GRACE_SECONDS = 90.0
"""Seconds without a sign of life after which a worker on another machine is taken for dead."""

RECIPE_ATTRIBUTE = "recipe"
"""What an attempt says of itself once it begins: the key of the recipe that it makes or has made."""


class Ledger:
    """All studies of one suite.

    Args:
        url: `sqlite:///FILE` or any database URL that SQLAlchemy knows, or `journal:FILE`; `memory:` keeps nothing.
        locks: folder of a lock per run, held while it is worked on; beside the runs, which it guards.
        grace: seconds without a sign of life after which a worker elsewhere is taken for dead.

    Raises:
        ToastError: it cannot be opened.
    """

    def __init__(self, url: str, locks: Path, grace: float = DEFAULT_GRACE_SECONDS) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.url, self.locks, self.grace = url, locks, grace
        self.storage = open_storage(url)
        self.machine = _get_machine_id()
        self._studies: dict[str, optuna.Study] = {}
        self._last_heartbeats: dict[tuple[str, int], tuple[int, float]] = {}

    def study(self, name: str, search: SearchOptions | None = None) -> optuna.Study:
        """A study by name, made if need be; with a `search`, with its sampler and pruner."""
        if name not in self._studies:
            with convert_read_errors(self.url), contextlib.suppress(DuplicatedStudyError):
                optuna.create_study(storage=self.storage, study_name=name, direction="maximize")
            with convert_read_errors(self.url):
                self._studies[name] = optuna.load_study(
                    study_name=name, storage=self.storage, sampler=make_sampler(search), pruner=make_pruner(search)
                )
        return self._studies[name]

    def compute_job_statuses(self, study: optuna.Study, jobs: Iterable[Job]) -> dict[Job, JobStatus]:
        """How far each wanted run has come."""
        by_key: dict[str, list[FrozenTrial]] = {}
        with convert_read_errors(self.url):
            for trial in study.get_trials(deepcopy=False):
                by_key.setdefault(trial.user_attrs.get("key", ""), []).append(trial)
        found = {job: compute_job_status(by_key.get(job.key, ())) for job in jobs}
        return {
            job: replace(standing, record=read_trial_record(standing.trial, self.url))
            if standing.state in ("done", "pruned") and standing.trial is not None
            else standing
            for job, standing in found.items()
        }

    def list_trials(self, *states: TrialState, begins: str = "", ends: str = "") -> list[tuple[str, FrozenTrial]]:
        """Return the trials in these states of all studies whose names begin and end so, each with its study's name."""
        with convert_read_errors(self.url):
            return [
                (name, trial)
                for name in optuna.get_all_study_names(self.storage)
                if name.startswith(begins) and name.endswith(ends)
                for trial in optuna.load_study(study_name=name, storage=self.storage).get_trials(False, states)
            ]

    def find_recipe(self, recipe: str) -> tuple[str, FrozenTrial] | None:
        """Return a finished attempt at a recipe, else one that a living worker is at, with its study's name."""
        found = None
        for study, trial in self.list_trials(TrialState.COMPLETE, TrialState.RUNNING):
            done = trial.state == TrialState.COMPLETE
            if trial.user_attrs.get(RECIPE_ATTRIBUTE, trial.user_attrs.get("key") if done else None) == recipe:
                if done:
                    return study, trial
                found = found if self.is_dead(study, trial) else (study, trial)
        return found

    def fill(self, study: optuna.Study, jobs: Iterable[Job], retry: bool = False) -> None:
        """Put in what is wanted and neither there nor failed; with `retry`, what failed too."""
        again = {"wanted", "failed"} if retry else {"wanted"}
        for job, standing in self.compute_job_statuses(study, jobs).items():
            if standing.state in again:
                params = job.params
                if params is None:  # an attempt that was cut short had drawn its own, and goes on with them
                    params = standing.trial.params if standing.trial is not None else {}
                study.enqueue_trial(dict(params), user_attrs={"key": job.key, "seed": job.seed, "retry": retry})

    def take(self, study: optuna.Study, jobs: Iterable[Job]) -> JobLease | None:
        """One of the waiting runs, which is this worker's from now on; None: there is none."""
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
                why = "another trial is this run, or nobody wants it any more"
                fail_trial(study, trial, "duplicate", why)
                continue
            claim = JobLease(study, trial, wanted[key], self.lock(key))
            if claim.begin(self.machine):
                return claim
        return None

    def fail_dead_trials(self, study: optuna.Study) -> int:
        """Give up the trials whose worker is dead; how many others are being worked on."""
        alive = 0
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self.is_dead(study.study_name, trial):
                with contextlib.suppress(UpdateFinishedTrialError):
                    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            else:
                alive += 1
        return alive

    def lock(self, key: str) -> FileLock:
        """The lock of a run: of the workers that share its folder, one holds it."""
        self.locks.mkdir(parents=True, exist_ok=True)
        return FileLock(self.locks.absolute() / f"{key}.lock")

    def is_dead(self, study: str, trial: FrozenTrial) -> bool:
        """Whether the worker of a running trial is no more."""
        attrs = trial.user_attrs
        if attrs.get("machine") == self.machine and Path(attrs.get("lock", "")).is_file():
            # The system lets go of a dead process's locks, so here nothing has to be waited for. The lock is the one
            # that the worker named: it may share this ledger from another folder.
            try:
                with FileLock(attrs["lock"]).acquire(timeout=0):
                    return True
            except Timeout:
                return False
            except OSError:
                pass  # another user's, which cannot be opened; signs of life can be read all the same
        beat, now = attrs.get("beat", 0), time.monotonic()
        seen, since = self._last_heartbeats.setdefault((study, trial.number), (beat, now))
        if beat != seen:
            self._last_heartbeats[study, trial.number] = beat, now
            return False
        return now - since > self.grace


def open_ledger(out: Path, url: str | None, grace: float = DEFAULT_GRACE_SECONDS) -> Ledger:
    """The ledger of the experiment in a folder: the one named, else SQLite in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    return Ledger(url or f"sqlite:///{out.absolute() / 'ledger.db'}", out / "locks", grace)


def _list_waiting_trials(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def _get_machine_id() -> str:
    """What two processes share that the same kernel runs, so that a lock of one is seen by the other."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()}/{boot.read_text().strip() if boot.is_file() else ''}"
