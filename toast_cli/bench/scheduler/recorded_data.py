"""A check that the data of a suite is still what its earlier runs were made with, before further runs are made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toast_cli.bench.scheduler.job_status import JobStatus
from toast_cli.bench.scheduler.jobs import Job
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.recipe.schema import Recipe
from toast_cli.training.data.run_data import describe_changes_since, identify_recipe_data
from toast_cli.utils.errors import ToastError

MAX_LISTED_RUNS = 5


def check_recorded_data(board: ExperimentScheduler, out: Path) -> None:
    """Check that no data set on which runs are still to be made has changed since earlier runs on it.

    Raises:
        ToastError: a data set has changed, or the record of a run is damaged.
    """
    identities: dict[str, Any] = {}
    for dataset in dict.fromkeys(dataset for dataset, _, _ in board.iterate_stages()):
        statuses = [
            (row, stage, job, status)
            for name, row, stage in board.iterate_stages()
            if name == dataset
            for job, status in (board.get_stage_status(name, row, stage) or {}).items()
        ]
        if all(status.state in ("done", "pruned") for *_, status in statuses):
            continue
        changed: dict[str, list[str]] = {}
        for row, stage, job, status in statuses:
            run = _find_run(out, job, status)
            if run is None and not status.record:
                continue
            recipe = board.experiment.build_recipe(dataset, row, stage, job.seed, job.params)
            if differences := describe_changes_since(run, status.record, _identify(recipe, identities)):
                changed[job.name] = differences
        if changed:
            names = [*list(changed)[:MAX_LISTED_RUNS], *(["..."] if len(changed) > MAX_LISTED_RUNS else [])]
            raise ToastError(
                f"The data set '{dataset}' has changed since {len(changed):,} of the suite's runs were started.",
                [*next(iter(changed.values())), f"Runs: {', '.join(names)}."],
                "Put the data back as it was, or make all runs again with a new --out (and a new --ledger).",
                code="bench.changed-data",
            )


def describe_reused_data(record: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return how the data of a finished run, known by its record, differs from that of a recipe now."""
    return describe_changes_since(None, record, _identify(recipe, {}))


def _identify(recipe: Recipe, known: dict[str, Any]) -> Any:
    """Return the identity of the data of a recipe; None if it cannot be opened, which its run then reports."""
    key = json.dumps([recipe.dataset.model_dump(mode="json"), recipe.data_dir])
    if key not in known:
        try:
            known[key] = identify_recipe_data(recipe)
        except ToastError:
            known[key] = None
    return known[key]


def _find_run(out: Path, job: Job, status: JobStatus) -> Path | None:
    """Return the folder of a run on this machine, or None."""
    folder = out / (status.record.get("run") or f"runs/{job.name}")
    return folder if folder.is_dir() else None
