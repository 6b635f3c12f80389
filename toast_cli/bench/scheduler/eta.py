"""How long what is left of an experiment takes, by the runs of it that are done: nothing is opened or timed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from toast_cli.bench.scheduler.job_status import JobStatus
from toast_cli.bench.scheduler.jobs import Stage
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler

StageKey = tuple[str, str, Stage]


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
    """The time left, None where nothing is done yet or nothing is left.

    A run takes as long as the finished ones of its data set, row and stage; else as those of its row and data set, its
    row, its data set, or any. What a running one has been at is taken off. Workers end no sooner than the longest run.
    """
    stages = {where: board.stage(*where) for where in board.stages()}
    known = {where: _collect_run_seconds((standings or {}).values()) for where, standings in stages.items()}
    finals = len(board.experiment.seeds or board.experiment.suite.seeds)
    if not any(known.values()):
        return None
    left: list[float] = []
    workers = alike = 0
    for where, standings in stages.items():
        open_runs = (
            [each for each in standings.values() if each.state in _UNFINISHED_STATES] if standings is not None else None
        )
        count = finals if open_runs is None else len(open_runs)
        alike += count if known[where] else 0
        each = _predict_run_seconds(where, known)
        left += [each] * (count - len(running := [run for run in open_runs or () if run.state == "running"]))
        left += [max(each - _compute_elapsed_seconds(run), 0.0) for run in running]
        workers += len(running)
    return RemainingTime(max(sum(left) / max(workers, 1), max(left)), len(left), alike, workers) if left else None


_UNFINISHED_STATES = ("wanted", "waiting", "running")


def _collect_run_seconds(standings: Iterable[JobStatus]) -> list[float]:
    return [standing.record["seconds"] for standing in standings if standing.state == "done"]


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


def _compute_elapsed_seconds(running: JobStatus) -> float:
    """Seconds since a running attempt was begun."""
    begun = None if running.trial is None else running.trial.datetime_start
    return 0.0 if begun is None else max((datetime.now() - begun).total_seconds(), 0.0)
