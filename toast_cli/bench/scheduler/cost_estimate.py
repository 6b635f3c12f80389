"""What an experiment takes: before it starts by finished runs or a few timed steps, later by finished runs alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from toast_cli.bench.scheduler.job_status import JobStatus
from toast_cli.bench.scheduler.jobs import Experiment, Stage
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.model.batches import open_data
from toast_cli.recipe.schema import Recipe
from toast_cli.training.plan.throughput import TimePerSample, measure_time_per_sample
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import prepare_session
from toast_cli.utils.errors import ToastError

StageKey = tuple[str, str, Stage]


@dataclass(frozen=True)
class StageCost:
    """What a stage of a cell still takes: runs, seconds of each (None: unknown, and why), and how that is known."""

    dataset: str
    row: str
    stage: Stage
    runs: int
    seconds: float | None
    source: str

    @property
    def total(self) -> float:
        """Seconds of one device; 0 where unknown."""
        return self.runs * (self.seconds or 0)


def estimate_costs(board: ExperimentScheduler, reporter: Reporter) -> list[StageCost]:
    """Return what is left to do, and how long it takes on one device like this one.

    A row is measured once, on the first data set that can be opened; on others its pace is the same, and sizes differ.
    """
    clock, costs = _PaceTimer(board.experiment, reporter), []
    for where, statuses in _list_stages(board).items():
        seconds: float | None
        runs, known = len(_list_unfinished(statuses)), _collect_run_seconds(statuses)
        if not runs:
            continue
        try:
            seconds, source = (
                (statistics.fmean(known), f"{len(known)} finished runs") if known else clock.time_run(*where)
            )
        except ToastError as error:
            seconds, source = None, error.what
        except RuntimeError as error:  # PyTorch's word for too little memory, and for much else
            seconds, source = None, f"{type(error).__name__}: {error}".partition("\n")[0]
        costs.append(StageCost(*where, runs, seconds, source))
    return costs


@dataclass(frozen=True)
class RemainingTime:
    """Seconds until all is done; of `runs` left, `alike` are of a row, data set and stage that has finished runs.

    `workers` run now; where none does, the time is that of one.
    """

    seconds: float
    runs: int
    alike: int
    workers: int


def estimate_remaining_time(board: ExperimentScheduler) -> RemainingTime | None:
    """Return the time left by the runs that are done, None where nothing is done yet or nothing is left.

    A run takes as long as the finished ones of its data set, row and stage; else as those of its row and data set, its
    row, its data set, or any. What a running one has been at is taken off. Workers end no sooner than the longest run.
    """
    stages = _list_stages(board)
    known = {where: _collect_run_seconds(statuses) for where, statuses in stages.items()}
    if not any(known.values()):
        return None
    left: list[float] = []
    workers = alike = 0
    for where, statuses in stages.items():
        unfinished = _list_unfinished(statuses)
        alike += len(unfinished) if known[where] else 0
        workers += sum(status.state == "running" for status in unfinished)
        each = _predict_run_seconds(where, known)
        left += [max(each - _compute_elapsed_seconds(status), 0.0) for status in unfinished]
    return RemainingTime(max(sum(left) / max(workers, 1), max(left)), len(left), alike, workers) if left else None


def _list_stages(board: ExperimentScheduler) -> dict[StageKey, list[JobStatus]]:
    """Every stage with how far each of its runs has come; those that wait for a search are wanted."""
    waiting = [JobStatus("wanted")] * len(board.experiment.final_seeds)
    found = {where: board.stage(*where) for where in board.stages()}
    return {where: waiting if runs is None else list(runs.values()) for where, runs in found.items()}


def _list_unfinished(statuses: Iterable[JobStatus]) -> list[JobStatus]:
    return [status for status in statuses if status.state in ("wanted", "waiting", "running")]


def _collect_run_seconds(statuses: Iterable[JobStatus]) -> list[float]:
    return [status.record["seconds"] for status in statuses if status.state == "done"]


def _predict_run_seconds(where: StageKey, known: Mapping[StageKey, list[float]]) -> float:
    """Mean seconds of the finished runs that are most like those of a stage."""
    dataset, row, _ = where
    for like in (
        lambda other: other == where,
        lambda other: other[:2] == (dataset, row),
        lambda other: other[1] == row,
        lambda other: other[0] == dataset,
    ):
        found = [seconds for other, each in known.items() if like(other) for seconds in each]
        if found:
            return statistics.fmean(found)
    return statistics.fmean(seconds for each in known.values() for seconds in each)


def _compute_elapsed_seconds(status: JobStatus) -> float:
    """Seconds since an attempt that is running was begun; 0 for any other."""
    begun = status.trial.datetime_start if status.state == "running" and status.trial is not None else None
    return 0.0 if begun is None else max((datetime.now() - begun).total_seconds(), 0.0)


class _PaceTimer:
    """Paces of rows, each measured once, and sizes of data sets, each opened once."""

    def __init__(self, experiment: Experiment, reporter: Reporter) -> None:
        self.experiment, self.reporter = experiment, reporter
        self._paces: dict[str, TimePerSample] = {}
        self._sizes: dict[str, Mapping[str, int] | ToastError] = {}

    def time_run(self, dataset: str, row: str, stage: Stage) -> tuple[float, str]:
        """Seconds of one run, and how that is known.

        Raises:
            ToastError: the data set cannot be opened, or the row not be built.
        """
        suite = self.experiment.suite
        seed = suite.search.seed if suite.search is not None and stage == "search" else suite.seeds[0]
        recipe = self.experiment.recipe(dataset, row, stage, seed)
        samples = self._samples(f"{dataset}/{stage}", recipe)
        if row not in self._paces:
            self.reporter.message(f"Timing a few steps of {row} on {dataset} …")
            started = time.perf_counter()
            session = prepare_session(recipe)
            session.sizes()
            self._paces[row] = measure_time_per_sample(session, time.perf_counter() - started)
        return self._paces[row].run(recipe, dict(samples)), "a few steps, timed"

    def _samples(self, where: str, recipe: Recipe) -> Mapping[str, int]:
        if where not in self._sizes:
            try:
                self._sizes[where] = {name: len(split) for name, split in open_data(recipe).splits.items()}
            except ToastError as error:
                self._sizes[where] = error
        found = self._sizes[where]
        if isinstance(found, ToastError):
            raise found
        return found


def format_duration(seconds: float) -> str:
    """90 as '1 min 30 s', 7500 as '2 h 05 min', 200000 as '2 d 7 h'."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"
