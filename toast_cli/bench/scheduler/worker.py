"""Workers: take runs from the ledger and make them until none is left."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import torch
from accelerate.utils import release_memory
from optuna.trial import TrialState

from toast_cli.bench.scheduler.database import read_trial_record
from toast_cli.bench.scheduler.jobs import Job, Stage, format_params
from toast_cli.bench.scheduler.lease import JobLease, LeaseLostError
from toast_cli.bench.scheduler.recorded_data import describe_reused_data
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.bench.scheduler.trials import RECIPE_ATTRIBUTE, Ledger
from toast_cli.bench.tables.metrics import compute_score, compute_search_score
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.checkpoint import is_checkpoint_lost
from toast_cli.storage.checksums import read_checksummed_json
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.reporter import Reporter, T
from toast_cli.training.tune import tune_model
from toast_cli.utils.errors import ToastError, UsageError

POLL_SECONDS = 2.0
"""Seconds between two queries of the ledger while other workers make the remaining runs."""


class SettingMismatchError(Exception):
    """Another setting of the cell has already evaluated the test split."""


class LeaseReporter(Reporter):
    """A reporter that forwards to another, and stops the run if it is taken over, pruned, or may not be tested."""

    def __init__(self, board: ExperimentScheduler, claim: JobLease, recipe: Recipe, inner: Reporter) -> None:
        self.board, self.claim, self.recipe, self.inner = board, claim, recipe, inner
        self.report_message = inner.report_message  # type: ignore[method-assign]

    def track_progress(self, items: Iterable[T], total: int, what: str) -> Iterable[T]:
        """Forward the items; before the test evaluation, check that the run may be tested."""
        if what == "test":
            _claim_test_split(self.board, self.claim.job)
        return self.inner.track_progress(items, total, what)

    def report_step(self, step: int, total: int, metrics: dict[str, Any]) -> None:
        """Forward a step; stop if another worker took over the run."""
        if self.claim.lost.is_set():
            raise LeaseLostError
        self.inner.report_step(step, total, metrics)

    def report_interruption(self, command: str) -> None:
        """Report an interruption without the run's own resume command, which would bypass the ledger."""
        self.inner.report_message(f"Stopped {self.claim.job.name}; its progress is saved. The suite resumes it.")

    def report_epoch(self, epoch: int, epochs: int, metrics: dict[str, Any], best: bool) -> None:
        """Forward an epoch; in a search, report its validation to the pruner."""
        self.inner.report_epoch(epoch, epochs, metrics, best)
        if self.claim.job.stage == "search" and "validation" in metrics:
            self.claim.trial.report(compute_search_score(self.recipe, metrics["validation"]), epoch)
            if self.claim.trial.should_prune():
                raise optuna.TrialPruned


def run_worker(board: ExperimentScheduler, out: Path, reporter: Reporter) -> None:
    """Make runs until none is left, and wait while other workers make runs that later ones depend on.

    Raises:
        KeyboardInterrupt: the worker was asked to stop; the progress of the current run is saved.
    """
    while True:
        claim, others = board.take_run()
        if claim is not None:
            with claim.keep_alive():
                run_job(board, claim, out, reporter)
            if torch.cuda.is_available():
                release_memory()  # before the next model is allocated
        elif others:
            time.sleep(POLL_SECONDS)
        else:
            return


def run_job(board: ExperimentScheduler, claim: JobLease, out: Path, reporter: Reporter) -> None:
    """Make a run, resume it, or reuse the result of an equal run, and record the outcome in the ledger."""
    job, experiment = claim.job, board.experiment
    try:
        params = claim.choose_params(experiment.suite.search)
        recipe = experiment.build_recipe(job.dataset, job.row, job.stage, job.seed, params)
        experiment.check_unchanged(recipe)
        key = experiment.compute_key(recipe)
        reporter.report_message(f"{job.row} on {job.dataset}, {job.stage}, seed {job.seed}: {format_params(params)}")
        folder = out / "runs" / replace(job, key=key).name
        if key != job.key:  # equal settings drawn twice share a folder
            claim.wait_for_lock(board.ledger.get_run_lock(key))
        found = _reuse_result(board.ledger, claim, key, recipe, reporter)
        value, record = found or _make_run(board, claim, recipe, folder, out, reporter)
        _claim_test_split(board, job)
        claim.record_result(value, {**record, "params": params})
        if found is None:
            _remove_temporary_files(RunFolder(folder), job.stage)
    except optuna.TrialPruned:
        claim.mark_pruned({"params": params})
        _remove_temporary_files(RunFolder(folder), job.stage)
        reporter.report_message(f"Pruned: {job.name}")
    except LeaseLostError:
        reporter.report_message(f"Abandoned, another worker took over: {job.name}")
    except SettingMismatchError:
        claim.mark_interrupted("another setting of its cell has evaluated the test split")
        reporter.report_message(f"Abandoned, another setting has evaluated the test split: {job.name}")
    except KeyboardInterrupt:
        claim.mark_interrupted()
        raise
    except ToastError as error:
        _report_failure(claim, reporter, " ".join(part for part in (error.what, error.why) if part))
    except Exception as error:  # an error in one run must not stop the others
        where = traceback.extract_tb(error.__traceback__)[-1]
        _report_failure(claim, reporter, f"{type(error).__name__}: {error} (at {where.name}, line {where.lineno})")


def _reuse_result(
    ledger: Ledger, claim: JobLease, key: str, recipe: Recipe, reporter: Reporter
) -> tuple[float, dict[str, Any]] | None:
    """Return the value and record of a finished run of the same recipe, or None if the run must be made.

    If another worker is making the recipe, wait for it. Workers of two experiment folders that query the ledger at the
    same moment both make the run, and both results are kept.

    Raises:
        LeaseLostError: another worker took over the run while this one waited.
    """
    while found := ledger.find_recipe(key):
        study, trial = found
        if trial.state == TrialState.COMPLETE:
            same_as, record = f"{study}, attempt {trial.number}", read_trial_record(trial, ledger.url)
            if differences := describe_reused_data(record, recipe):
                reporter.report_message(
                    f"Not reusing the result of {same_as}: its data was different. {differences[0]}"
                )
                break
            reporter.report_message(f"Reusing the result of {same_as}, which has the same recipe.")
            return trial.values[0], {**record, "same_as": same_as}
        if claim.lost.wait(POLL_SECONDS):
            raise LeaseLostError
    claim.trial.set_user_attr(RECIPE_ATTRIBUTE, key)
    return None


def _make_run(
    board: ExperimentScheduler, claim: JobLease, recipe: Recipe, folder: Path, out: Path, reporter: Reporter
) -> tuple[float, dict[str, Any]]:
    """Make or resume a run unless its folder contains results; return its value and record."""
    job = claim.job
    if not (folder / "results.json").is_file():
        resume = (folder / "recipe.yaml").is_file()
        if resume and is_checkpoint_lost(RunFolder(folder).checkpoints, "last"):
            reporter.report_message(f"Restarting {job.name}: it has no intact checkpoint.")
            resume = False
        if not resume and folder.exists():
            shutil.rmtree(folder)  # left by a worker that died before it saved anything, or damaged
        tune_model(recipe, folder, LeaseReporter(board, claim, recipe, reporter), resume=resume)
    results = read_checksummed_json(folder / "results.json")
    metrics = results["validation"] if job.stage == "search" else results["test"] or results["validation"]
    if metrics is None:
        missing = "validation" if job.stage == "search" else "test"
        raise UsageError(f"Cannot score runs on {job.dataset}: it has no {missing} split.", code="bench.missing-split")
    score = compute_search_score(recipe, metrics) if job.stage == "search" else compute_score(metrics)
    return score, _make_run_record(folder, out, results)


def _claim_test_split(board: ExperimentScheduler, job: Job) -> None:
    if job.stage == "final" and not board.lock_test_params(job):
        raise SettingMismatchError


def _report_failure(claim: JobLease, reporter: Reporter, reason: str) -> None:
    claim.mark_failed(reason[:2000])
    reporter.report_message(f"Failed: {claim.job.name}: {reason}")


def _make_run_record(folder: Path, out: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tables and time estimates need of a run, so that they read only its answers from the folder."""
    environment = read_checksummed_json(folder / "environment.json")
    taken = (
        *("seed", "split_hashes", "split_contents", "samples", "trained_parameters", "flops", "flops_plain"),
        *("selected_epoch", "seconds"),
    )
    short = {"validation": _select_scalars(results["validation"]), "test": _select_scalars(results["test"])}
    short["attention"] = (results["test"] or {}).get("attention_share")
    ran_on = {name: environment[name] for name in ("versions", "device", "precision", "processes")}
    place = {"run": folder.relative_to(out).as_posix(), "out": str(out.resolve())}
    return {**place, **{name: results[name] for name in taken}, **short, **ran_on}


def _select_scalars(metrics: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the scalar metrics, without values per class."""
    return metrics and {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _remove_temporary_files(folder: RunFolder, stage: Stage) -> None:
    """Delete the checkpoints of a finished run; after a search, also the adapter."""
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    if stage == "search":
        shutil.rmtree(folder.adapter, ignore_errors=True)
