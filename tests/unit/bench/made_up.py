"""A suite's results as if all of its final runs were done, without a ledger or a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.unit.bench.conftest import record
from toast_cli.bench.results import ExperimentResults
from toast_cli.bench.scheduler.job_status import JobStatus
from toast_cli.bench.scheduler.jobs import Experiment, Job
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.bench.suite import Suite

Left = Callable[[str, str, int], dict[str, Any] | None]
"""What the run of a (data set, row, seed) leaves beside an ordinary record; None: it is not done."""


class Filled(ExperimentScheduler):
    """A board on which every final run left what `left` says."""

    def __init__(self, experiment: Experiment, left: Left) -> None:
        self.experiment, self.left = experiment, left

    def iterate_stages(self) -> Iterator[tuple[str, str, Any]]:
        return ((dataset, row, "final") for dataset, row in self.experiment.cells)

    def count_unrequested_runs(self) -> int:
        return 0

    def count_runs_by_state(self) -> Counter[str]:
        return Counter()

    def get_stage_status(self, dataset: str, row: str, stage: Any) -> dict[Job, JobStatus]:
        found = {}
        for seed in self.experiment.suite.seeds:
            if (more := self.left(dataset, row, seed)) is not None:
                run = f"runs/{dataset}-{row}-{seed}".replace(" ", "-")
                standing = JobStatus("done", record=record(seed, 0.5, run) | more)
                found[Job(dataset, row, stage, seed, run)] = standing
        return found


def filled(suite: Suite, out: Path, left: Left) -> ExperimentResults:
    """The results of a suite whose data sources are all taken to be there."""
    experiment = Experiment("made-up", suite)
    experiment.__dict__["missing"] = {}
    return ExperimentResults(Filled(experiment, left), out)


def accuracy(value: float, **more: Any) -> dict[str, Any]:
    """What a run leaves that has so many percent right, on validation and test."""
    metrics = {"accuracy": value / 100, "loss": 1.0}
    return {"validation": metrics, "test": metrics, **more}
