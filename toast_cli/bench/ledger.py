"""The ledger: which runs were made, are being made, or failed, in an Optuna storage that any number of workers share.

A study holds the runs of one (data set, row, stage), a trial is one attempt at one run. What is wanted is put in as
waiting trials, and a worker takes one by setting it to running, which a storage lets one worker do. Two workers may put
the same run in at the same moment; of its trials the lowest number then counts, which all workers see alike.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from toast_cli.bench.jobs import Job
from toast_cli.bench.soundness import check_file, readable, record_of, sealed_record, without_password
from toast_cli.bench.suite import Range, Search
from toast_cli.errors import ToastError

State = Literal["wanted", "waiting", "running", "done", "pruned", "failed"]

BEAT = 10.0
"""Seconds between two signs of life of a running trial."""
GRACE = 90.0
"""Seconds without one after which a worker on another machine is taken for dead."""
OPENINGS, BETWEEN_OPENINGS = 4, 0.5
"""How often a database is tried to be opened, and the seconds in between."""
MOST_DEATHS = 3
"""Workers that may die on a run before it counts as failed: it may be what kills them."""


@dataclass(frozen=True)
class Standing:
    """How far a wanted run has come. `trial` is the attempt that counts, `reason` why the last one failed."""

    state: State
    trial: FrozenTrial | None = None
    reason: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What a finished run left: results, versions, where it lies."""


class Ledger:
    """All studies of one suite.

    Args:
        url: `sqlite:///FILE` or any database URL that SQLAlchemy knows, or `journal:FILE`; `memory:` keeps nothing.
        locks: folder of a lock per run, held while it is worked on.
        grace: seconds without a sign of life after which a worker elsewhere is taken for dead.

    Raises:
        ToastError: it cannot be opened.
    """

    def __init__(self, url: str, locks: Path, grace: float = GRACE) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.url, self.locks, self.grace = url, locks, grace
        self.storage = _opened(url)
        self.machine = _machine()
        self._studies: dict[str, optuna.Study] = {}
        self._beats: dict[int, tuple[int, float]] = {}

    def study(self, name: str, search: Search | None = None) -> optuna.Study:
        """A study by name, made if need be; with a `search`, with its sampler and pruner."""
        if name not in self._studies:
            with readable(self.url), contextlib.suppress(DuplicatedStudyError):
                optuna.create_study(storage=self.storage, study_name=name, direction="maximize")
            with readable(self.url):
                self._studies[name] = optuna.load_study(
                    study_name=name, storage=self.storage, sampler=_sampler(search), pruner=_pruner(search)
                )
        return self._studies[name]

    def studies(self) -> list[str]:
        """The names of all studies."""
        with readable(self.url):
            return optuna.get_all_study_names(self.storage)

    def standings(self, study: optuna.Study, jobs: Iterable[Job]) -> dict[Job, Standing]:
        """How far each wanted run has come."""
        by_key: dict[str, list[FrozenTrial]] = {}
        with readable(self.url):
            for trial in study.get_trials(deepcopy=False):
                by_key.setdefault(trial.user_attrs.get("key", ""), []).append(trial)
        found = {job: _standing(by_key.get(job.key, ())) for job in jobs}
        return {
            job: replace(standing, record=record_of(standing.trial, self.url))
            if standing.state in ("done", "pruned") and standing.trial is not None
            else standing
            for job, standing in found.items()
        }

    def fill(self, study: optuna.Study, jobs: Iterable[Job], retry: bool = False) -> None:
        """Put in what is wanted and neither there nor failed; with `retry`, what failed too."""
        again = {"wanted", "failed"} if retry else {"wanted"}
        for job, standing in self.standings(study, jobs).items():
            if standing.state in again:
                params = job.params
                if params is None:  # an attempt that was cut short had drawn its own, and goes on with them
                    params = standing.trial.params if standing.trial is not None else {}
                study.enqueue_trial(dict(params), user_attrs={"key": job.key, "seed": job.seed, "retry": retry})

    def take(self, study: optuna.Study, jobs: Iterable[Job]) -> Claim | None:
        """One of the waiting runs, which is this worker's from now on; None: there is none."""
        wanted = {job.key: job for job in jobs}
        while any(trial.user_attrs.get("key") in wanted for trial in _waiting(study)):
            trial = study.ask()
            key = trial.user_attrs.get("key")
            earlier = [
                other
                for other in study.get_trials(deepcopy=False)
                if other.number < trial.number and other.user_attrs.get("key") == key and _is_alive(other)
            ]
            if key not in wanted or earlier:
                self.close(study, trial.number, "duplicate", "another trial is this run, or nobody wants it any more")
                continue
            claim = Claim(self, study, trial, wanted[key])
            if claim.begin():
                return claim
        return None

    def bury(self, study: optuna.Study) -> int:
        """Give up the trials whose worker is dead; how many others are being worked on."""
        alive = 0
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._is_dead(trial):
                self.close(
                    study, trial.number, "lost", f"its worker died ({trial.user_attrs.get('worker', 'unknown')})"
                )
            else:
                alive += 1
        return alive

    def close(self, study: optuna.Study, number: int, fate: str, reason: str) -> None:
        """End an attempt that came to nothing, unless someone else was quicker."""
        trial = next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)
        with contextlib.suppress(UpdateFinishedTrialError):
            for name, value in {"fate": fate, "reason": reason}.items():
                self.storage.set_trial_user_attr(trial._trial_id, name, value)
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def lock(self, key: str) -> FileLock:
        """The lock of a run: one worker of those that share the folder holds it."""
        self.locks.mkdir(parents=True, exist_ok=True)
        return FileLock(self.locks / f"{key}.lock")

    def _is_dead(self, trial: FrozenTrial) -> bool:
        attrs = trial.user_attrs
        if attrs.get("machine") == self.machine and "key" in attrs:
            # The system lets go of a dead process's locks, so here nothing has to be waited for.
            try:
                with self.lock(attrs["key"]).acquire(timeout=0):
                    return True
            except Timeout:
                return False
        beat, now = attrs.get("beat", 0), time.monotonic()
        seen, since = self._beats.setdefault(trial._trial_id, (beat, now))
        if beat != seen:
            self._beats[trial._trial_id] = beat, now
            return False
        return now - since > self.grace


class Claim:
    """A run that this worker has taken, until it is told how the run ended."""

    def __init__(self, ledger: Ledger, study: optuna.Study, trial: Trial, job: Job) -> None:
        self.study, self.trial, self.job = study, trial, job
        self.lost = threading.Event()
        """Set when another worker took this one for dead: what goes on here counts no more."""
        self._ledger, self._lock = ledger, ledger.lock(job.key)
        self._over = threading.Event()

    def params(self, search: Search | None) -> dict[str, Any]:
        """The run's hyper-parameters: the job's own, or what the search's sampler draws."""
        if self.job.params is not None:
            return dict(self.job.params)
        assert search is not None
        if search.sampler != "qmc":
            # Drawn by the run's own seed: workers that draw from one and the same seed would draw the same.
            self.study.sampler = _sampler(search, search.seed * 100_003 + (self.job.slot or 0))
        return {name: _suggested(self.trial, name, values) for name, values in search.space.items()}

    def begin(self) -> bool:
        """Lock the run and say whose it is; whether nobody else holds it."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._close("stopped", "another worker holds its lock")
            time.sleep(1)
            return False
        worker = f"process {os.getpid()} on {platform.node()}"
        for name, value in {"machine": self._ledger.machine, "worker": worker, "beat": 1}.items():
            self.trial.set_user_attr(name, value)
        return True

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Within, show signs of life; afterwards the run is free."""
        thread = threading.Thread(target=self._beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self._lock.release()

    def done(self, value: float, record: Mapping[str, Any]) -> None:
        """The run got to its end."""
        self._tell(TrialState.COMPLETE, record, [value])

    def pruned(self, record: Mapping[str, Any]) -> None:
        """The run was stopped early, being worse than others."""
        self._tell(TrialState.PRUNED, record)

    def failed(self, reason: str) -> None:
        """The run cannot be made; it waits for someone to ask for it again."""
        self._close("failed", reason)

    def stopped(self) -> None:
        """This worker was asked to stop; any other may go on with the run."""
        self._close("stopped", "its worker was asked to stop")

    def _close(self, fate: str, reason: str) -> None:
        self._ledger.close(self.study, self.trial.number, fate, reason)

    def _tell(self, state: TrialState, record: Mapping[str, Any], values: list[float] | None = None) -> None:
        # Refused where another worker took the run over: then that one's word counts.
        with contextlib.suppress(UpdateFinishedTrialError):
            self.trial.set_user_attr("record", sealed_record(record, values[0] if values else None))
            self._ledger.storage.set_trial_state_values(self.trial._trial_id, state, values)

    def _beat(self) -> None:
        beat = 1
        while not self._over.wait(BEAT):
            beat += 1
            try:
                self.trial.set_user_attr("beat", beat)
            except UpdateFinishedTrialError:
                self.lost.set()
                return
            except Exception:
                # A storage that cannot be reached for a moment; if it stays so, telling the end will say it.
                continue


def open_ledger(out: Path, url: str | None, grace: float = GRACE) -> Ledger:
    """The ledger of the experiment in a folder: the one named, else SQLite in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    return Ledger(url or f"sqlite:///{out.absolute() / 'ledger.db'}", out / "locks", grace)


def _opened(url: str) -> Any:
    kind, _, place = url.partition(":")
    if kind == "memory":
        return optuna.storages.InMemoryStorage()
    try:
        if kind == "journal":
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend

            Path(place).parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(place))
        check_file(url)
        # SQLite lets one process write at a time; the others wait for it rather than fail.
        wait = {"connect_args": {"timeout": 120}} if kind.startswith("sqlite") else {}
        for left in reversed(range(OPENINGS)):
            try:
                return optuna.storages.RDBStorage(url, engine_kwargs={**wait, "pool_pre_ping": True})
            except Exception as error:
                # Of two workers that meet an empty database, one finds the other's half-made tables.
                if not left or isinstance(error, ImportError):
                    raise
                time.sleep(BETWEEN_OPENINGS)
    except ToastError:
        raise
    except Exception as error:  # whatever the database's driver raises
        raise ToastError(
            f"The ledger {without_password(url)} could not be opened.",
            f"{type(error).__name__}: {error}".partition("\n")[0],
            "Give sqlite:///FILE, journal:FILE, or the URL of a database whose driver is installed.",
        ) from error


def _standing(trials: Iterable[FrozenTrial]) -> Standing:
    """How far a run has come that was tried so: a finished attempt counts most, then one that is under way."""
    tried = [trial for trial in trials if trial.user_attrs.get("fate") != "duplicate"]
    for wanted, state in _COUNTING.items():
        for trial in tried:
            if trial.state == wanted:
                return Standing(state, trial)
    if not tried:
        return Standing("wanted")
    last = tried[-1]
    reason = last.user_attrs.get("reason", "its worker died")
    since = max((n for n, trial in enumerate(tried) if trial.user_attrs.get("retry")), default=0)
    deaths = sum(trial.user_attrs.get("fate", "lost") == "lost" for trial in tried[since:])
    if last.user_attrs.get("fate") == "failed":
        return Standing("failed", last, reason)
    if deaths >= MOST_DEATHS:
        return Standing("failed", last, f"{deaths} workers died on it, the last time: {reason}; out of memory?")
    return Standing("wanted", last, reason)


_COUNTING: dict[TrialState, State] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def _is_alive(trial: FrozenTrial) -> bool:
    return trial.state in _COUNTING


def _waiting(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def _suggested(trial: Trial, name: str, values: Any) -> Any:
    if not isinstance(values, Range):
        return trial.suggest_categorical(name, list(values))
    return trial.suggest_float(name, values.low, values.high, log=values.log)


def _sampler(search: Search | None, seed: int = 0) -> optuna.samplers.BaseSampler:
    if search is None or search.sampler in ("grid", "random"):
        # A grid's points are put in as they are, so nothing is left to draw.
        return optuna.samplers.RandomSampler(seed)
    if search.sampler == "qmc":
        return optuna.samplers.QMCSampler(seed=search.seed)
    # Liar: what others are trying at this moment counts as tried.
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _pruner(search: Search | None) -> optuna.pruners.BasePruner:
    if search is None or search.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner() if search.pruner == "median" else optuna.pruners.HyperbandPruner()


def _machine() -> str:
    """What two processes share that the same kernel runs, so that a lock of one is seen by the other."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()}/{boot.read_text().strip() if boot.is_file() else ''}"
