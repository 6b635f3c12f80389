"""What an experiment will cost, before it starts: from finished runs where there are some, else from a few steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from toast_cli.bench.scheduler.jobs import Experiment, Stage
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.model.batches import open_data
from toast_cli.recipe.schema import Recipe
from toast_cli.training.plan.throughput import TimePerSample, measure_time_per_sample
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import prepare_session
from toast_cli.utils.errors import ToastError


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
    """What is left to do, and how long it takes on one device like this one.

    A row is measured once, on the first data set that can be opened; on others its pace is the same, and sizes differ.
    """
    experiment, clock = board.experiment, _PaceTimer(board.experiment, reporter)
    found = []
    for dataset, row, stage in board.stages():
        standings = board.stage(dataset, row, stage)
        done = [standing for standing in (standings or {}).values() if standing.state == "done"]
        settled = sum(standing.state in ("done", "pruned", "failed") for standing in (standings or {}).values())
        wanted = len(standings) if standings is not None else len(experiment.seeds or experiment.suite.seeds)
        if wanted == settled:
            continue
        if done:
            mean, source = (
                statistics.fmean(standing.record["seconds"] for standing in done),
                f"{len(done)} finished runs",
            )
            found.append(StageCost(dataset, row, stage, wanted - settled, mean, source))
            continue
        try:
            seconds, source = clock.run(dataset, row, stage)
            found.append(StageCost(dataset, row, stage, wanted - settled, seconds, source))
        except ToastError as error:
            found.append(StageCost(dataset, row, stage, wanted - settled, None, error.what))
        except RuntimeError as error:  # PyTorch's word for too little memory, and for much else
            why = f"{type(error).__name__}: {error}".partition("\n")[0]
            found.append(StageCost(dataset, row, stage, wanted - settled, None, why))
    return found


class _PaceTimer:
    """Paces of rows, each measured once, and sizes of data sets, each opened once."""

    def __init__(self, experiment: Experiment, reporter: Reporter) -> None:
        self.experiment, self.reporter = experiment, reporter
        self._paces: dict[str, TimePerSample] = {}
        self._sizes: dict[str, Mapping[str, int] | ToastError] = {}

    def run(self, dataset: str, row: str, stage: Stage) -> tuple[float, str]:
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
