"""A worker: takes one run after another from the ledger until nothing is left to do."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
from accelerate.utils import release_memory

from toast_cli.bench.claim import Claim
from toast_cli.bench.jobs import Experiment, Job, Stage
from toast_cli.bench.ledger import Ledger
from toast_cli.bench.numbers import score
from toast_cli.bench.standing import Standing
from toast_cli.errors import ToastError, UsageError
from toast_cli.storage.run_folder import RunFolder
from toast_cli.storage.sealing import read_sealed
from toast_cli.training.reporter import Reporter
from toast_cli.training.tuning import tune

POLL = 2.0
"""Seconds between two looks at the ledger where all that is left is being done by others."""


class LostClaim(Exception):
    """Another worker took this one for dead, and the run from it."""


class Board:
    """What an experiment wants, and how far it has come by the ledger.

    A stage whose runs are all settled is remembered as it is; nothing about it can change any more.
    """

    def __init__(self, experiment: Experiment, ledger: Ledger) -> None:
        self.experiment, self.ledger = experiment, ledger
        self._settled: dict[tuple[str, str, Stage], dict[Job, Standing]] = {}
        self._jobs: dict[tuple[str, str, str], list[Job]] = {}

    def study(self, dataset: str, row: str, stage: Stage) -> optuna.Study:
        """The study of a stage."""
        search = self.experiment.suite.search if stage == "search" else None
        return self.ledger.study(self.experiment.study(dataset, row, stage), search)

    def stage(self, dataset: str, row: str, stage: Stage) -> dict[Job, Standing] | None:
        """How far every run of a stage has come; None where it waits for the search before it.

        Raises:
            UsageError: no recipe can be made for the cell.
        """
        where = dataset, row, stage
        if where in self._settled:
            return self._settled[where]
        chosen = self.chosen(dataset, row) if stage == "final" else {}
        if chosen is None:
            return None
        known = (dataset, row, json.dumps([stage, chosen]))
        if known not in self._jobs:
            experiment = self.experiment
            self._jobs[known] = (
                experiment.searches(dataset, row) if stage == "search" else experiment.finals(dataset, row, chosen)
            )
        standings = self.ledger.standings(self.study(*where), self._jobs[known]) if self._jobs[known] else {}
        if all(standing.state in ("done", "pruned") for standing in standings.values()):
            self._settled[where] = standings
        return standings

    def chosen(self, dataset: str, row: str) -> dict[str, Any] | None:
        """The hyper-parameters that validated best, empty without a search; None: it is not over, or all of it failed.

        Runs that failed do not hold it up: they are shown, and the best of the others is taken.
        """
        standings = self.stage(*self.experiment.suite.searcher(dataset, row), "search")
        if not standings:
            return {}
        if any(standing.state in ("wanted", "waiting", "running") for standing in standings.values()):
            return None
        done = [standing for standing in standings.values() if standing.state == "done"]
        best = max(done, key=_merit, default=None)
        return None if best is None else best.record["params"]

    def stages(self) -> Iterator[tuple[str, str, Stage]]:
        """Every stage of every cell, in the order in which they are worked on."""
        for dataset, row in self.experiment.searched:
            yield dataset, row, "search"
        for dataset, row in self.experiment.cells:
            yield dataset, row, "final"

    def counts(self) -> Counter[str]:
        """How many runs stand where; those that wait for a search are `wanted`."""
        found: Counter[str] = Counter()
        for where in self.stages():
            standings = self.stage(*where)
            if standings is None:
                found["wanted"] += len(self.experiment.seeds or self.experiment.suite.seeds)
            else:
                found.update(standing.state for standing in standings.values())
        return found

    def retry(self) -> None:
        """Ask again for every run that failed."""
        for where in self.stages():
            standings = self.stage(*where)
            if any(standing.state == "failed" for standing in (standings or {}).values()):
                self.ledger.fill(self.study(*where), standings or {}, retry=True)

    def take(self) -> tuple[Claim | None, int]:
        """A run for this worker, if there is one; and how many others are working on.

        A dead worker's run is wanted again at once.
        """
        others = 0
        for where in self.stages():
            if where in self._settled:
                continue
            standings = self.stage(*where)
            if standings is None:
                continue
            study = self.study(*where)
            others += self.ledger.bury(study)
            self.ledger.fill(study, standings)
            claim = self.ledger.take(study, standings)
            if claim is not None:
                return claim, others
        return None, others


class Watched(Reporter):
    """Passes a run on to another reporter; stops it where it was lost, or where pruning says so."""

    def __init__(self, claim: Claim, inner: Reporter) -> None:
        self.claim, self.inner = claim, inner
        self.message, self.track = inner.message, inner.track  # type: ignore[method-assign]

    def step(self, step: int, total: int, metrics: dict[str, Any]) -> None:
        """One step is done."""
        if self.claim.lost.is_set():
            raise LostClaim
        self.inner.step(step, total, metrics)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, Any], best: bool) -> None:
        """One epoch is done; while searching, its validation is reported to the sampler."""
        self.inner.epoch(epoch, epochs, metrics, best)
        if self.claim.job.stage == "search" and "validation" in metrics:
            self.claim.trial.report(score(metrics["validation"]), epoch)
            if self.claim.trial.should_prune():
                raise optuna.TrialPruned


def work(board: Board, out: Path, reporter: Reporter) -> None:
    """Make runs until none is left that this worker could make; waits while others work on what it waits for.

    Raises:
        KeyboardInterrupt: asked to stop; what the current run had done is kept and goes on later.
    """
    while True:
        claim, others = board.take()
        if claim is not None:
            with claim.alive():
                run(board.experiment, claim, out, reporter)
            if torch.cuda.is_available():
                release_memory()  # of the model that is gone, before the next one comes
        elif others:
            time.sleep(POLL)
        else:
            return


def run(experiment: Experiment, claim: Claim, out: Path, reporter: Reporter) -> None:
    """Make one run, or go on with it, and tell the ledger how it ended."""
    job = claim.job
    folder = out / "runs" / job.name
    try:
        params = claim.params(experiment.suite.search)
        recipe = experiment.recipe(job.dataset, job.row, job.stage, job.seed, params)
        reporter.message(f"{job.row} on {job.dataset}, {job.stage}, seed {job.seed}: {_shown(params)}")
        if not (folder / "results.json").is_file():
            goes_on = (folder / "recipe.yaml").is_file()
            if not goes_on and folder.exists():
                shutil.rmtree(folder)  # ours: a worker died before it had written anything
            tune(recipe, folder, Watched(claim, reporter), resume=goes_on)
        results = read_sealed(folder / "results.json")
        judged = results["validation"] if job.stage == "search" else results["test"] or results["validation"]
        if judged is None:
            missing = "validation" if job.stage == "search" else "test"
            raise UsageError(f"There is nothing to judge {job.dataset} by: it has no {missing} split.")
        claim.done(score(judged), {**_record(folder, out, results), "params": params})
        _tidy(RunFolder(folder), job.stage)
    except optuna.TrialPruned:
        claim.pruned({"run": _within(folder, out), "params": params})
        _tidy(RunFolder(folder), job.stage)
        reporter.message(f"Pruned: {job.name}")
    except LostClaim:
        reporter.message(f"Left to the worker that took it over: {job.name}")
    except KeyboardInterrupt:
        claim.stopped()
        raise
    except ToastError as error:
        _failed(claim, reporter, " ".join(part for part in (error.what, error.why) if part))
    except Exception as error:  # one run's fault must not end the others
        where = traceback.extract_tb(error.__traceback__)[-1]
        _failed(claim, reporter, f"{type(error).__name__}: {error} (at {where.name}, line {where.lineno})")


def _failed(claim: Claim, reporter: Reporter, reason: str) -> None:
    claim.failed(reason[:2000])
    reporter.message(f"Failed: {claim.job.name}: {reason}")


def _record(folder: Path, out: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """What a table and an estimate need of a run, so that they need no file of it but the answers."""
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    taken = ("seed", "split_hashes", "trained_parameters", "flops", "flops_plain", "selected_epoch", "seconds")
    short = {"validation": _plain(results["validation"]), "test": _plain(results["test"])}
    short["attention"] = (results["test"] or {}).get("attention_share")
    ran_on = {name: environment[name] for name in ("versions", "device", "precision", "processes")}
    return {"run": _within(folder, out), **{name: results[name] for name in taken}, **short, **ran_on}


def _plain(metrics: dict[str, Any] | None) -> dict[str, Any] | None:
    """The numbers alone, without those of every class."""
    return metrics and {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _within(folder: Path, out: Path) -> str:
    return folder.relative_to(out).as_posix()


def _tidy(folder: RunFolder, stage: Stage) -> None:
    """Drop what only an unfinished run needs; of a search, the adapter too: its numbers are what it was for."""
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    if stage == "search":
        shutil.rmtree(folder.adapter, ignore_errors=True)


def _merit(standing: Standing) -> tuple[float, float]:
    """Higher is better; of equals, the one with the lower validation loss, as within a run."""
    assert standing.trial is not None
    return standing.trial.value or 0.0, -standing.record["validation"]["loss"]


def _shown(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in params.items()) or "the recipe's settings"
