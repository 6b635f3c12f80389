"""A worker: how each way in which a run can end is told to the ledger, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from toast_cli.bench.scheduler import worker
from toast_cli.bench.scheduler.jobs import Experiment
from toast_cli.bench.scheduler.lease import JobLease
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.bench.scheduler.trials import Ledger
from toast_cli.bench.scheduler.worker import run_worker
from toast_cli.bench.suite import parse_suite
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import ToastError

SUITE = """
backbone: vit_demo_3
datasets: {Markings: demo}
rows: {linear: {method: linear}}
seeds: [0]
search:
  space: {training.lr: [0.1, 0.2, 0.3]}
"""

Tune = Callable[[Recipe, Path, Reporter, bool], None]


@pytest.fixture
def board(tmp_path: Path) -> ExperimentScheduler:
    return ExperimentScheduler(Experiment("x", parse_suite(SUITE, "x")), Ledger("memory:", tmp_path / "locks"))


def made(recipe: Recipe, folder: Path, accuracy: float) -> None:
    """The run folder that a run of this accuracy leaves."""
    metrics = {"accuracy": accuracy, "loss": 1.0, "per_class": {"a": 1}}
    results = {
        "seed": recipe.seed,
        "split_hashes": {},
        "split_contents": {},
        "samples": {},
        "trained_parameters": 1,
        "flops": 1,
        "flops_plain": 1,
    }
    results |= {"selected_epoch": 1, "seconds": 1.0, "validation": metrics, "test": metrics if recipe.test else None}
    environment: dict[str, Any] = {"versions": {}, "device": "cpu", "precision": "fp32", "processes": 1}
    run = RunFolder(folder)
    run.write_environment(environment)
    run.write_results(results)


def by(act: Callable[[float, Recipe, Path, Reporter], None]) -> Any:
    """A `tune` that acts by the learning rate."""
    return lambda recipe, folder, reporter, resume: act(recipe.training.lr, recipe, folder, reporter)


def states(board: ExperimentScheduler, stage: Any = "search") -> dict[float, str]:
    standings = board.get_stage_status("Markings", "linear", stage) or {}
    return {(job.params or {})["training.lr"]: standing.state for job, standing in standings.items()}


def test_the_best_of_a_search_is_trained_again_and_no_run_of_the_search_may_see_the_test_split(
    board: ExperimentScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, bool]] = []

    def act(lr: float, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
        seen.append((lr, recipe.test))
        made(recipe, folder, {0.1: 0.5, 0.2: 0.8, 0.3: 0.6}[lr])

    monkeypatch.setattr(worker, "tune_model", by(act))
    run_worker(board, tmp_path, Reporter())
    assert seen == [(0.1, False), (0.2, False), (0.3, False), (0.2, True)]
    (final,) = (board.get_stage_status("Markings", "linear", "final") or {}).values()
    assert final.record["params"] == {"training.lr": 0.2}
    assert final.record["test"] == {"accuracy": 0.8, "loss": 1.0}
    assert not board.count_runs_by_state().keys() - {"done"}


def test_a_row_that_takes_anothers_settings_is_trained_with_what_that_row_was_found_to_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(lr: float, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
        seen.append((recipe.method.name, lr))
        made(recipe, folder, {0.1: 0.5, 0.2: 0.8, 0.3: 0.6}[lr])

    seen: list[tuple[str, float]] = []
    text = SUITE.replace("{method: linear}", "{method: linear}, full: {method: full, settings_of: linear}")
    experiment = Experiment("x", parse_suite(text, "x"), rows=("full",))
    monkeypatch.setattr(worker, "tune_model", by(act))
    run_worker(ExperimentScheduler(experiment, Ledger("memory:", tmp_path / "locks")), tmp_path, Reporter())
    assert seen == [("linear", 0.1), ("linear", 0.2), ("linear", 0.3), ("full", 0.2)]


def test_a_pruned_run_is_settled_and_never_chosen(
    board: ExperimentScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune = [False]
    monkeypatch.setattr("optuna.trial.Trial.should_prune", lambda trial: prune[0])

    def act(lr: float, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
        folder.mkdir(parents=True)
        prune[0] = lr == 0.2
        reporter.report_epoch(1, 9, {"train": {}, "validation": {"accuracy": 0.9, "loss": 1.0}}, True)
        made(recipe, folder, 0.5)

    monkeypatch.setattr(worker, "tune_model", by(act))
    run_worker(board, tmp_path, Reporter())
    assert states(board) == {0.1: "done", 0.2: "pruned", 0.3: "done"}
    assert states(board, "final") == {0.1: "done"}, "of equals, the first"


def test_a_failed_run_does_not_end_the_others_whatever_it_raised(
    board: ExperimentScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(lr: float, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
        if lr == 0.1:
            raise ToastError("The loss became nan.", "At step 3.")
        if lr == 0.2:
            raise RuntimeError("CUDA out of memory")
        made(recipe, folder, 0.5)

    monkeypatch.setattr(worker, "tune_model", by(act))
    run_worker(board, tmp_path, Reporter())
    assert states(board) == {0.1: "failed", 0.2: "failed", 0.3: "done"}
    reasons = [standing.reason for standing in (board.get_stage_status("Markings", "linear", "search") or {}).values()]
    assert reasons[0] == "The loss became nan. At step 3."
    assert reasons[1].startswith("RuntimeError: CUDA out of memory (at act, line")
    assert states(board, "final") == {0.3: "done"}, "the best of those that did not fail is taken"


def test_where_every_run_of_a_search_failed_there_is_no_final_run(
    board: ExperimentScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(*_: Any) -> None:
        raise ToastError("No.")

    monkeypatch.setattr(worker, "tune_model", by(act))
    run_worker(board, tmp_path, Reporter())
    assert board.count_runs_by_state() == {"failed": 3, "wanted": 1}
    assert board.get_stage_status("Markings", "linear", "final") is None


def test_a_worker_that_is_asked_to_stop_leaves_its_run_to_the_next(
    board: ExperimentScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "tune_model", by(act))
    with pytest.raises(KeyboardInterrupt):
        run_worker(board, tmp_path, Reporter())
    assert states(board)[0.1] == "wanted"


def test_a_run_that_was_finished_but_not_told_is_told_and_not_made_again(
    board: ExperimentScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = []

    def act(recipe: Recipe, folder: Path, reporter: Reporter, resume: bool) -> None:
        resumed.append((recipe.training.lr, recipe.test, resume))
        made(recipe, folder, 0.5)

    first, second, third = board.experiment.make_search_jobs("Markings", "linear")
    made(
        board.experiment.build_recipe("Markings", "linear", "search", 0, first.params),
        tmp_path / "runs" / first.name,
        0.9,
    )
    (tmp_path / "runs" / second.name).mkdir()
    (tmp_path / "runs" / second.name / "recipe.yaml").write_text("begun")
    (tmp_path / "runs" / third.name).mkdir()
    monkeypatch.setattr(worker, "tune_model", act)
    run_worker(board, tmp_path, Reporter())
    assert resumed == [(0.2, False, True), (0.3, False, False), (0.1, True, False)]


def test_a_worker_that_lost_its_run_says_nothing_about_it(
    board: ExperimentScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(lr: float, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
        if lr == 0.1 and not (tmp_path / "lost").exists():
            (tmp_path / "lost").touch()
            claim: JobLease = reporter.claim  # type: ignore[attr-defined]
            claim.study.tell(claim.trial.number, state=TrialState.FAIL)
            claim.lost.set()
        reporter.report_step(1, 2, {})
        made(recipe, folder, 0.5)

    monkeypatch.setattr(worker, "tune_model", by(act))
    run_worker(board, tmp_path, Reporter())
    trials = board.open_study("Markings", "linear", "search").get_trials()
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert json.dumps(states(board)) == json.dumps({0.1: "done", 0.2: "done", 0.3: "done"})


def looks(recipe: Recipe, folder: Path, reporter: Reporter, accuracy: float) -> None:
    """A run as `tune` makes it: the test split is tracked when it is looked at."""
    if recipe.test:
        list(reporter.track_progress([1], 1, "test"))
    made(recipe, folder, accuracy)


def test_what_validates_better_after_test_was_looked_at_is_said_and_not_taken(
    board: ExperimentScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, seen = [True], list[float]()

    def act(lr: float, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
        if lr == 0.3 and broken[0]:
            raise RuntimeError("no memory")
        if recipe.test:
            seen.append(lr)
        looks(recipe, folder, reporter, {0.1: 0.5, 0.2: 0.8, 0.3: 0.9}[lr])

    monkeypatch.setattr(worker, "tune_model", by(act))
    run_worker(board, tmp_path, Reporter())
    assert seen == [0.2] and board.list_overtaken_cells() == []
    broken[0] = False
    again = ExperimentScheduler(board.experiment, board.ledger)
    again.enqueue_failed_runs()
    run_worker(again, tmp_path, Reporter())
    assert seen == [0.2], "the test split was looked at with one setting"
    assert again.count_runs_by_state() == {"done": 4}
    (said,) = again.list_overtaken_cells()
    assert "training.lr=0.3 validated better than training.lr=0.2" in said and "training.lr=0.2 stays" in said
    more = ExperimentScheduler(replace(board.experiment, seeds=(0, 1)), board.ledger)
    run_worker(more, tmp_path, Reporter())
    assert seen == [0.2, 0.2], "a further seed has the same setting"


def test_a_better_setting_is_taken_as_long_as_test_was_not_looked_at(
    board: ExperimentScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, seen = [True], list[float]()

    def act(lr: float, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
        if broken[0] and (lr == 0.3 or recipe.test):
            raise RuntimeError("no memory")
        if recipe.test:
            seen.append(lr)
        looks(recipe, folder, reporter, {0.1: 0.5, 0.2: 0.8, 0.3: 0.9}[lr])

    monkeypatch.setattr(worker, "tune_model", by(act))
    run_worker(board, tmp_path, Reporter())
    broken[0] = False
    again = ExperimentScheduler(board.experiment, board.ledger)
    again.enqueue_failed_runs()
    run_worker(again, tmp_path, Reporter())
    assert seen == [0.3] and again.list_overtaken_cells() == []


def test_a_run_that_comes_to_its_test_after_another_setting_does_not_look(
    board: ExperimentScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = list[float]()

    def act(lr: float, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
        if recipe.test and lr == 0.2:  # meanwhile, a worker that began with another setting comes to its end
            (other,) = board.experiment.make_final_jobs("Markings", "linear", {"training.lr": 0.1})
            assert board.lock_test_params(other)
        if recipe.test:
            list(reporter.track_progress([1], 1, "test"))
            looked.append(lr)
        made(recipe, folder, {0.1: 0.5, 0.2: 0.8, 0.3: 0.6}[lr])

    monkeypatch.setattr(worker, "tune_model", by(act))
    run_worker(board, tmp_path, Reporter())
    assert looked == [0.1]
    assert states(board, "final") == {0.1: "done"}
