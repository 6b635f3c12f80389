"""The scheduler: the status of an experiment's runs, and the next run to make."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from toast_cli.bench.scheduler.database import convert_read_errors
from toast_cli.bench.scheduler.job_status import JobStatus
from toast_cli.bench.scheduler.jobs import Experiment, Job, Stage, format_params
from toast_cli.bench.scheduler.lease import JobLease
from toast_cli.bench.scheduler.trials import Ledger
from toast_cli.storage.checksums import add_checksum, parse_checksummed_json
from toast_cli.utils.hashing import hash_json


class ExperimentScheduler:
    """The runs of an experiment and their status in the ledger.

    A stage is cached once all its runs are done or pruned. The setting with which a cell evaluated its test split is
    also cached, since it never changes: a setting that validates better later is not used.
    """

    def __init__(self, experiment: Experiment, ledger: Ledger) -> None:
        self.experiment, self.ledger = experiment, ledger
        self._settled_stages: dict[tuple[str, str, Stage], dict[Job, JobStatus]] = {}
        self._jobs: dict[tuple[str, str, str], list[Job]] = {}
        self._test_params: dict[tuple[str, str], dict[str, Any]] = {}

    def open_study(self, dataset: str, row: str, stage: Stage) -> optuna.Study:
        """Return the study of a stage."""
        search = self.experiment.suite.search if stage == "search" else None
        return self.ledger.open_study(self.experiment.get_study_name(dataset, row, stage), search)

    def get_stage_status(self, dataset: str, row: str, stage: Stage) -> dict[Job, JobStatus] | None:
        """Return the status of every run of a stage, or None if the stage waits for its search.

        Raises:
            UsageError: the recipe of the cell is not valid.
        """
        where = dataset, row, stage
        if where in self._settled_stages:
            return self._settled_stages[where]
        chosen = self.get_final_params(dataset, row) if stage == "final" else {}
        if chosen is None:
            return None
        jobs = self._list_jobs(dataset, row, stage, chosen)
        standings = self.ledger.compute_job_statuses(self.open_study(*where), jobs) if jobs else {}
        if all(standing.state in ("done", "pruned") for standing in standings.values()):
            self._settled_stages[where] = standings
        return standings

    def get_final_params(self, dataset: str, row: str) -> dict[str, Any] | None:
        """Return the hyper-parameters of a cell's final runs, empty if the suite has no search.

        These are the ones that validated best. Once a run has evaluated the test split, its hyper-parameters stay
        selected. Failed runs of the search are ignored. Returns None if the search is not finished or all its runs
        failed.
        """
        standings = self.get_stage_status(*self.experiment.suite.get_search_cell(dataset, row), "search")
        if not standings:
            return {}
        fixed = self.get_locked_params(dataset, row)
        if fixed is not None:
            return fixed
        if any(standing.state in ("wanted", "waiting", "running") for standing in standings.values()):
            return None
        best = _find_best_status(standings)
        return None if best is None else best.record["params"]

    def get_locked_params(self, dataset: str, row: str) -> dict[str, Any] | None:
        """Return the setting with which a cell evaluated its test split; None if it has not, or without a search."""
        if self.experiment.suite.search is None:
            return None
        if (dataset, row) not in self._test_params:
            with convert_read_errors(self.ledger.url):
                kept = self.open_study(dataset, row, "final").user_attrs.get(self._make_setting_key(dataset, row))
                if kept is None:
                    return None
                self._test_params[dataset, row] = parse_checksummed_json(json.dumps(kept))["params"]
        return self._test_params[dataset, row]

    def lock_test_params(self, job: Job) -> bool:
        """Record a final run's setting before its test evaluation; return False if its cell has another setting."""
        if self.experiment.suite.search is None:
            return True
        if self.get_locked_params(job.dataset, job.row) is None:
            study = self.open_study(job.dataset, job.row, "final")
            study.set_user_attr(
                self._make_setting_key(job.dataset, job.row), add_checksum({"params": dict(job.params or {})})
            )
        return self.get_locked_params(job.dataset, job.row) == job.params

    def list_overtaken_cells(self) -> list[str]:
        """Return a message for each cell for which a better setting was found after its test evaluation."""
        found = []
        for dataset, row in self.experiment.cells:
            standings = self.get_stage_status(*self.experiment.suite.get_search_cell(dataset, row), "search") or {}
            fixed, best = self.get_locked_params(dataset, row), _find_best_status(standings)
            if fixed is None or best is None or best.record["params"] == fixed:
                continue
            kept = [each for each in standings.values() if each.state == "done" and each.record["params"] == fixed]
            if not kept or _compute_rank(best) > max(map(_compute_rank, kept)):
                found.append(
                    f"{row} on {dataset}: {format_params(best.record['params'])} validated better than "
                    f"{format_params(fixed)}, but the test split had already been evaluated, so "
                    f"{format_params(fixed)} stays selected. To search again, use a new --ledger (or a new --out)."
                )
        return found

    def count_unrequested_runs(self) -> int:
        """Return the number of finished final runs in the ledger with seeds, rows or settings not requested here."""
        finals = [where for where in self.iterate_stages() if where[2] == "final"]
        requested = {
            (self.experiment.get_study_name(*where), job.key)
            for where in finals
            for job in self.get_stage_status(*where) or {}
        }
        done = self.ledger.list_trials(TrialState.COMPLETE, begins=f"{self.experiment.name}/", ends="/final")
        return len({(study, trial.user_attrs.get("key", "")) for study, trial in done} - requested)

    def _make_setting_key(self, dataset: str, row: str) -> str:
        """Return the attribute that stores the setting of a cell; it depends on the runs of the search."""
        jobs = self._list_jobs(*self.experiment.suite.get_search_cell(dataset, row), "search", {})
        return f"setting of search {hash_json([job.key for job in jobs])[:16]}"

    def _list_jobs(self, dataset: str, row: str, stage: Stage, chosen: Mapping[str, Any]) -> list[Job]:
        known = (dataset, row, json.dumps([stage, chosen]))
        if known not in self._jobs:
            experiment = self.experiment
            self._jobs[known] = (
                experiment.make_search_jobs(dataset, row)
                if stage == "search"
                else experiment.make_final_jobs(dataset, row, chosen)
            )
        return self._jobs[known]

    def iterate_stages(self) -> Iterator[tuple[str, str, Stage]]:
        """Yield every stage of every cell, in the order of execution."""
        for dataset, row in self.experiment.search_cells:
            yield dataset, row, "search"
        for dataset, row in self.experiment.cells:
            yield dataset, row, "final"

    def count_runs_by_state(self) -> Counter[str]:
        """Return the number of runs by state; runs that wait for a search are `wanted`."""
        found: Counter[str] = Counter()
        for where in self.iterate_stages():
            standings = self.get_stage_status(*where)
            if standings is None:
                found["wanted"] += len(self.experiment.final_seeds)
            else:
                found.update(standing.state for standing in standings.values())
        return found

    def enqueue_failed_runs(self) -> None:
        """Enqueue every failed run again."""
        for where in self.iterate_stages():
            standings = self.get_stage_status(*where)
            if any(standing.state == "failed" for standing in (standings or {}).values()):
                self.ledger.enqueue_jobs(self.open_study(*where), standings or {}, retry=True)

    def take_run(self) -> tuple[JobLease | None, int]:
        """Return the lease of a run, None if there is no run to make, and the number of runs of other workers.

        The run of a dead worker becomes available immediately.
        """
        others = 0
        for where in self.iterate_stages():
            if where in self._settled_stages:
                continue
            standings = self.get_stage_status(*where)
            if standings is None:
                continue
            study = self.open_study(*where)
            others += self.ledger.fail_dead_trials(study)
            self.ledger.enqueue_jobs(study, standings)
            claim = self.ledger.take_waiting_run(study, standings)
            if claim is not None:
                return claim, others
        return None, others


def _find_best_status(standings: Mapping[Job, JobStatus]) -> JobStatus | None:
    """Return the finished run that validated best."""
    return max((each for each in standings.values() if each.state == "done"), key=_compute_rank, default=None)


def _compute_rank(standing: JobStatus) -> tuple[float, float]:
    """Return the rank of a finished run: its score, then its negative validation loss. Higher is better."""
    assert standing.trial is not None
    return standing.trial.value or 0.0, -standing.record["validation"]["loss"]
