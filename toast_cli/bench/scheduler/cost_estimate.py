"""Time estimates: before a start from finished runs or a few timed steps, later from finished runs only."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from toast_cli.bench.scheduler.job_status import JobStatus
from toast_cli.bench.scheduler.jobs import Experiment, Stage
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.model.recipe_data import open_data
from toast_cli.recipe.schema import Recipe
from toast_cli.training.plan.throughput import TimePerSample, measure_time_per_sample
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import prepare_session
from toast_cli.utils.errors import ToastError

StageKey = tuple[str, str, Stage]


@dataclass(frozen=True)
class StageCost:
    """Remaining cost of a stage of a cell.

    `runs` are left, each takes `seconds` (None if unknown). `source` says how the time is known or why it is not.
    """

    dataset: str
    row: str
    stage: Stage
    runs: int
    seconds: float | None
    source: str

    @property
    def total(self) -> float:
        """Device-seconds of all runs; 0 if the time of a run is unknown."""
        return self.runs * (self.seconds or 0)


def estimate_costs(board: ExperimentScheduler, reporter: Reporter) -> list[StageCost]:
    """Return the unfinished stages with the time of their runs on one device like this one.

    A row is timed once, on the first data set that can be opened. On other data sets, the pace is scaled by their size.
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
        except RuntimeError as error:  # PyTorch raises it for a lack of memory, among others
            seconds, source = None, f"{type(error).__name__}: {error}".partition("\n")[0]
        costs.append(StageCost(*where, runs, seconds, source))
    return costs


@dataclass(frozen=True)
class RemainingTime:
    """Estimate of the time until all runs are finished.

    `seconds` is the time with the `workers` that run now, or with one worker if none runs. `runs` are left; for `alike`
    of these, a run of the same row, data set and stage has finished.
    """

    seconds: float
    runs: int
    alike: int
    workers: int


def estimate_remaining_time(board: ExperimentScheduler) -> RemainingTime | None:
    """Return the remaining time, or None if no run has finished or none is left.

    The time of a run is the mean of the finished runs of its data set, row and stage. If there are none, it is the mean
    of its data set and row, of its row, of its data set, or of all runs. The time that a running run has already taken
    is subtracted. The result is at least the time of the longest run that is left.
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
    """Return the status of each run of every stage; runs that wait for a search are `wanted`."""
    waiting = [JobStatus("wanted")] * len(board.experiment.final_seeds)
    found = {where: board.get_stage_status(*where) for where in board.iterate_stages()}
    return {where: waiting if runs is None else list(runs.values()) for where, runs in found.items()}


def _list_unfinished(statuses: Iterable[JobStatus]) -> list[JobStatus]:
    return [status for status in statuses if status.state in ("wanted", "waiting", "running")]


def _collect_run_seconds(statuses: Iterable[JobStatus]) -> list[float]:
    return [status.record["seconds"] for status in statuses if status.state == "done"]


def _predict_run_seconds(where: StageKey, known: Mapping[StageKey, list[float]]) -> float:
    """Return the mean seconds of the finished runs that are most similar to those of a stage."""
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
    """Return the seconds since the start of a running attempt, 0 if the run is not running."""
    start = status.trial.datetime_start if status.state == "running" and status.trial is not None else None
    return 0.0 if start is None else max((datetime.now() - start).total_seconds(), 0.0)


class _PaceTimer:
    """Cache of the pace of each row and of the size of each data set."""

    def __init__(self, experiment: Experiment, reporter: Reporter) -> None:
        self.experiment, self.reporter = experiment, reporter
        self._paces: dict[str, TimePerSample] = {}
        self._sizes: dict[str, Mapping[str, int] | ToastError] = {}

    def time_run(self, dataset: str, row: str, stage: Stage) -> tuple[float, str]:
        """Return the estimated seconds of a run, and how the time is known.

        Raises:
            ToastError: the data set cannot be opened, or the model cannot be built.
        """
        suite = self.experiment.suite
        seed = suite.search.seed if suite.search is not None and stage == "search" else suite.seeds[0]
        recipe = self.experiment.build_recipe(dataset, row, stage, seed)
        samples = self._iterate_samples(f"{dataset}/{stage}", recipe)
        if row not in self._paces:
            self.reporter.report_message(f"Timing a few steps of {row} on {dataset} …")
            started = time.perf_counter()
            session = prepare_session(recipe)
            session.measure_model_sizes()
            self._paces[row] = measure_time_per_sample(session, time.perf_counter() - started)
        return self._paces[row].estimate_run_seconds(recipe, dict(samples)), "a few timed steps"

    def _iterate_samples(self, where: str, recipe: Recipe) -> Mapping[str, int]:
        if where not in self._sizes:
            try:
                self._sizes[where] = {name: len(split) for name, split in open_data(recipe).splits.items()}
            except ToastError as error:
                self._sizes[where] = error
        found = self._sizes[where]
        if isinstance(found, ToastError):
            raise found
        return found
