"""A worker: takes one run after another from the ledger until nothing is left to do."""

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
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.bench.scheduler.trials import RECIPE_ATTRIBUTE, Ledger
from toast_cli.bench.tables.metrics import compute_score
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.checkpoint import is_checkpoint_lost
from toast_cli.storage.checksums import read_checksummed_json
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.reporter import Reporter, T
from toast_cli.training.tune import tune_model
from toast_cli.utils.errors import ToastError, UsageError

POLL_SECONDS = 2.0
"""Seconds between two looks at the ledger where all that is left is being done by others."""


class SettingMismatchError(Exception):
    """A cell looks at its test split with one setting, and this run has another."""


class LeaseReporter(Reporter):
    """Passes a run on to another reporter; stops it where it was lost, may not see the test split, or is pruned."""

    def __init__(self, board: ExperimentScheduler, claim: JobLease, inner: Reporter) -> None:
        self.board, self.claim, self.inner = board, claim, inner
        self.message = inner.message  # type: ignore[method-assign]

    def track(self, items: Iterable[T], total: int, what: str) -> Iterable[T]:
        """Pass items through; before the test split is looked at, make sure that it may be."""
        if what == "test":
            _claim_test_split(self.board, self.claim.job)
        return self.inner.track(items, total, what)

    def step(self, step: int, total: int, metrics: dict[str, Any]) -> None:
        """One step is done."""
        if self.claim.lost.is_set():
            raise LeaseLostError
        self.inner.step(step, total, metrics)

    def stopped(self, command: str) -> None:
        """The run was interrupted; alone, by its own command, it would go on past the ledger."""
        self.inner.message(f"Stopped, and kept what was done of {self.claim.job.name}. It goes on with its suite.")

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, Any], best: bool) -> None:
        """One epoch is done; while searching, its validation is reported to the sampler."""
        self.inner.epoch(epoch, epochs, metrics, best)
        if self.claim.job.stage == "search" and "validation" in metrics:
            self.claim.trial.report(compute_score(metrics["validation"]), epoch)
            if self.claim.trial.should_prune():
                raise optuna.TrialPruned


def run_worker(board: ExperimentScheduler, out: Path, reporter: Reporter) -> None:
    """Make runs until none is left that this worker could make; waits while others work on what it waits for.

    Raises:
        KeyboardInterrupt: asked to stop; what the current run had done is kept and goes on later.
    """
    while True:
        claim, others = board.take()
        if claim is not None:
            with claim.alive():
                run_job(board, claim, out, reporter)
            if torch.cuda.is_available():
                release_memory()  # of the model that is gone, before the next one comes
        elif others:
            time.sleep(POLL_SECONDS)
        else:
            return


def run_job(board: ExperimentScheduler, claim: JobLease, out: Path, reporter: Reporter) -> None:
    """Make one run, go on with it, or take it from where it was made, and tell the ledger how it ended."""
    job, experiment = claim.job, board.experiment
    try:
        params = claim.params(experiment.suite.search)
        recipe = experiment.recipe(job.dataset, job.row, job.stage, job.seed, params)
        experiment.check_unchanged(recipe)
        key = experiment.key(recipe)
        reporter.message(f"{job.row} on {job.dataset}, {job.stage}, seed {job.seed}: {format_params(params)}")
        folder = out / "runs" / replace(job, key=key).name
        if key != job.key:  # a setting that was drawn again shares the folder of the first
            claim.wait_for_lock(board.ledger.lock(key))
        found = _reuse_result(board.ledger, claim, key, reporter)
        value, record = found or _make_run(board, claim, recipe, folder, out, reporter)
        _claim_test_split(board, job)
        claim.done(value, {**record, "params": params})
        if found is None:
            _remove_temporary_files(RunFolder(folder), job.stage)
    except optuna.TrialPruned:
        claim.pruned({"params": params})
        _remove_temporary_files(RunFolder(folder), job.stage)
        reporter.message(f"Pruned: {job.name}")
    except LeaseLostError:
        reporter.message(f"Left to the worker that took it over: {job.name}")
    except SettingMismatchError:
        claim.stopped("another setting of its cell has looked at the test split")
        reporter.message(f"Left, as another setting has looked at the test split: {job.name}")
    except KeyboardInterrupt:
        claim.stopped()
        raise
    except ToastError as error:
        _report_failure(claim, reporter, " ".join(part for part in (error.what, error.why) if part))
    except Exception as error:  # one run's fault must not end the others
        where = traceback.extract_tb(error.__traceback__)[-1]
        _report_failure(claim, reporter, f"{type(error).__name__}: {error} (at {where.name}, line {where.lineno})")


def _reuse_result(
    ledger: Ledger, claim: JobLease, recipe: str, reporter: Reporter
) -> tuple[float, dict[str, Any]] | None:
    """Return value and record of a finished run of a recipe, once one that is under way has ended; None: make it.

    Workers of two folders that look at the same moment both make it. That costs a run; both results stand.

    Raises:
        LeaseLostError: another worker took this one for dead meanwhile.
    """
    while found := ledger.find_recipe(recipe):
        study, trial = found
        if trial.state == TrialState.COMPLETE:
            same_as = f"{study}, attempt {trial.number}"
            reporter.message(f"The same recipe as {same_as}: taken from there.")
            return trial.values[0], {**read_trial_record(trial, ledger.url), "same_as": same_as}
        if claim.lost.wait(POLL_SECONDS):
            raise LeaseLostError
    claim.trial.set_user_attr(RECIPE_ATTRIBUTE, recipe)
    return None


def _make_run(
    board: ExperimentScheduler, claim: JobLease, recipe: Recipe, folder: Path, out: Path, reporter: Reporter
) -> tuple[float, dict[str, Any]]:
    """Make a run or go on with it, unless its folder has its results; return its value and record."""
    job = claim.job
    if not (folder / "results.json").is_file():
        goes_on = (folder / "recipe.yaml").is_file()
        if goes_on and is_checkpoint_lost(RunFolder(folder).checkpoints, "last"):
            reporter.message(f"No whole checkpoint of {job.name} is left: it is begun anew.")
            goes_on = False
        if not goes_on and folder.exists():
            shutil.rmtree(folder)  # ours: a worker died before it had written anything, or what it wrote is damaged
        tune_model(recipe, folder, LeaseReporter(board, claim, reporter), resume=goes_on)
    results = read_checksummed_json(folder / "results.json")
    judged = results["validation"] if job.stage == "search" else results["test"] or results["validation"]
    if judged is None:
        missing = "validation" if job.stage == "search" else "test"
        raise UsageError(
            f"There is nothing to judge {job.dataset} by: it has no {missing} split.", code="bench.missing-split"
        )
    return compute_score(judged), _make_run_record(folder, out, results)


def _claim_test_split(board: ExperimentScheduler, job: Job) -> None:
    if job.stage == "final" and not board.lock_test_params(job):
        raise SettingMismatchError


def _report_failure(claim: JobLease, reporter: Reporter, reason: str) -> None:
    claim.failed(reason[:2000])
    reporter.message(f"Failed: {claim.job.name}: {reason}")


def _make_run_record(folder: Path, out: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """What a table and an estimate need of a run, so that they need no file of it but the answers."""
    environment = read_checksummed_json(folder / "environment.json")
    taken = ("seed", "split_hashes", "trained_parameters", "flops", "flops_plain", "selected_epoch", "seconds")
    short = {"validation": _select_scalars(results["validation"]), "test": _select_scalars(results["test"])}
    short["attention"] = (results["test"] or {}).get("attention_share")
    ran_on = {name: environment[name] for name in ("versions", "device", "precision", "processes")}
    place = {"run": folder.relative_to(out).as_posix(), "out": str(out.resolve())}
    return {**place, **{name: results[name] for name in taken}, **short, **ran_on}


def _select_scalars(metrics: dict[str, Any] | None) -> dict[str, Any] | None:
    """The numbers alone, without those of every class."""
    return metrics and {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _remove_temporary_files(folder: RunFolder, stage: Stage) -> None:
    """Drop what only an unfinished run needs; of a search, the adapter too: its numbers are what it was for."""
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    if stage == "search":
        shutil.rmtree(folder.adapter, ignore_errors=True)
