"""Results of an experiment's final runs, in the form that its tables need."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toast_cli.bench.scheduler.job_status import JobStatus
from toast_cli.bench.scheduler.jobs import Job
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.bench.tables.metrics import get_decisive_metrics, select_metric
from toast_cli.storage.checksums import read_checksummed_json


class ExperimentResults:
    """Results of every final run of an experiment.

    Args:
        board: the scheduler of the experiment.
        out: the experiment folder; paths of runs are relative to it.
    """

    def __init__(self, board: ExperimentScheduler, out: Path) -> None:
        self.board, self.out = board, out
        self.finals: dict[tuple[str, str], dict[Job, JobStatus]] = {}
        for dataset, row in board.experiment.cells:
            standings = board.get_stage_status(dataset, row, "final") or {}
            self.finals[dataset, row] = {job: standing.with_run_path_from(out) for job, standing in standings.items()}

    def get_records(self, dataset: str, row: str) -> dict[int, Mapping[str, Any]]:
        """Return the records of the finished final runs of a cell, by seed."""
        standings = self.finals.get((dataset, row), {})
        return {job.seed: standing.record for job, standing in standings.items() if standing.state == "done"}

    def list_failures(self) -> list[tuple[Job, str]]:
        """Return every failed run with its reason, including runs of searches."""
        found = []
        for where in self.board.iterate_stages():
            for job, standing in (self.board.get_stage_status(*where) or {}).items():
                if standing.state == "failed":
                    found.append((job, standing.reason))
        return found

    def list_datasets(self, row: str) -> tuple[str, ...]:
        """Return the data sets on which this experiment runs a row."""
        return tuple(dataset for dataset, name in self.finals if name == row)

    def get_region_kind(self, record: Mapping[str, Any]) -> str:
        """Return the kind of region in which attention was measured, such as a box or an outline."""
        file = self.out / record["run"] / "results.json"
        return (read_checksummed_json(file).get("attended_region") if file.is_file() else None) or "its masks"

    def iterate_runs(self) -> Iterator[dict[str, Any]]:
        """Yield a flat mapping for each finished final run: its folder, score, settings and environment."""
        for (dataset, row), standings in self.finals.items():
            for job, standing in standings.items():
                if standing.state != "done":
                    continue
                record = standing.record
                metrics = get_decisive_metrics(record)
                metric = select_metric(metrics)
                yield {
                    "dataset": dataset,
                    "row": row,
                    "seed": job.seed,
                    "metric": metric.name,
                    "value": metrics[metric.name],
                    "split": "validation" if record["test"] is None else "test",
                    **{f"attention_{name}": (record["attention"] or {}).get(name) for name in ("pass_one", "pass_two")},
                    **{f"{name}_hash": record["split_hashes"].get(name) for name in ("train", "val", "test")},
                    "hyper_parameters": json.dumps(record["params"]),
                    "epoch": record["selected_epoch"],
                    "trained_parameters": record["trained_parameters"],
                    "flops": record["flops"],
                    "seconds": round(record["seconds"], 1),
                    "device": record["device"],
                    "precision": record["precision"],
                    "versions": json.dumps(record["versions"]),
                    "key": job.key,
                    "run": record["run"],
                }
