"""One recipe, one run: whoever would make it again takes over what was made; where both make it, no harm is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.bench.conftest import record
from tests.unit.bench.test_worker import made
from toast_cli.bench.results import ExperimentResults
from toast_cli.bench.scheduler import worker
from toast_cli.bench.scheduler.jobs import Experiment, Job
from toast_cli.bench.scheduler.lease import JobLease
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.bench.scheduler.trials import RECIPE_ATTRIBUTE, Ledger
from toast_cli.bench.scheduler.worker import run_worker
from toast_cli.bench.suite import parse_suite
from toast_cli.recipe.schema import Recipe
from toast_cli.training.reporter import Reporter

SUITE = """
backbone: vit_demo_3
datasets: {Markings: demo}
rows: {linear: {method: linear}}
seeds: [0]
"""
Open = Callable[..., Ledger]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, bool]]:
    """The runs that were trained: folder of the experiment, learning rate, whether test was looked at."""
    runs: list[tuple[str, float, bool]] = []

    def tune(recipe: Recipe, folder: Path, reporter: Reporter, resume: bool) -> None:
        runs.append((folder.parent.parent.name, recipe.training.lr, recipe.test))
        made(recipe, folder, 0.5)

    monkeypatch.setattr(worker, "tune_model", tune)
    return runs


def test_a_setting_that_a_sampler_draws_again_is_trained_once(
    tmp_path: Path, trained: list[tuple[str, float, bool]]
) -> None:
    text = SUITE + "search: {space: {training.lr: [0.1]}, sampler: random, trials: 3}"
    board = ExperimentScheduler(Experiment("x", parse_suite(text, "x")), Ledger("memory:", tmp_path / "locks"))
    run_worker(board, tmp_path / "out", Reporter())
    assert trained == [("out", 0.1, False), ("out", 0.1, True)]
    assert board.count_runs_by_state() == {"done": 4}
    search = list((board.get_stage_status("Markings", "linear", "search") or {}).values())
    assert len({standing.record["run"] for standing in search}) == 1
    assert search[1].record["same_as"] == "x/Markings/linear/search, attempt 0"


def test_rows_that_differ_in_nothing_are_trained_once_and_both_are_shown(
    tmp_path: Path, trained: list[tuple[str, float, bool]]
) -> None:
    text = SUITE.replace("{linear: {method: linear}}", "{linear: {method: linear}, twin: {method: linear}}")
    board = ExperimentScheduler(Experiment("x", parse_suite(text, "x")), Ledger("memory:", tmp_path / "locks"))
    run_worker(board, tmp_path, Reporter())
    assert len(trained) == 1
    first, twin = ((board.get_stage_status("Markings", row, "final") or {}).values() for row in ("linear", "twin"))
    assert [each.record["run"] for each in first] == [each.record["run"] for each in twin]


def test_what_another_suite_made_in_the_same_ledger_is_taken_from_its_folder(
    tmp_path: Path, trained: list[tuple[str, float, bool]], open_again: Open
) -> None:
    for name in ("one", "two"):
        board = ExperimentScheduler(Experiment(name, parse_suite(SUITE, "x")), open_again(name))
        run_worker(board, tmp_path / name, Reporter())
    assert [folder for folder, *_ in trained] == ["one"]
    ((standing),) = (board.get_stage_status("Markings", "linear", "final") or {}).values()
    run = standing.record["run"]
    assert standing.with_run_path_from(tmp_path / "one").record["run"] == run
    found = Path(standing.with_run_path_from(tmp_path / "two").record["run"])
    assert found == tmp_path / "one" / run and (found / "results.json").is_file()
    (told,) = ExperimentResults(board, tmp_path / "two").iterate_runs()
    assert told["run"] == found.as_posix(), "a table names it by its whole path"
    (tmp_path / "one").rename(tmp_path / "moved")
    assert standing.with_run_path_from(tmp_path / "moved").record["run"] == run


def taken(ledger: Ledger, study: str, job: Job) -> JobLease:
    ledger.enqueue_jobs(ledger.open_study(study), [job])
    claim = ledger.take_waiting_run(ledger.open_study(study), [job])
    assert claim is not None
    return claim


def test_a_recipe_that_another_worker_is_at_is_waited_for(
    tmp_path: Path,
    trained: list[tuple[str, float, bool]],
    open_again: Open,
    jobs: list[Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.02)
    board = ExperimentScheduler(Experiment("x", parse_suite(SUITE, "x")), open_again("two"))
    (job,) = board.get_stage_status("Markings", "linear", "final") or {}
    maker = taken(open_again("one"), "a", jobs[0])
    maker.trial.set_user_attr(RECIPE_ATTRIBUTE, job.key)
    thread = threading.Thread(target=run_worker, args=(board, tmp_path / "two", Reporter()))
    thread.start()
    thread.join(1)
    assert thread.is_alive() and not trained
    maker.record_result(0.75, record(0, 0.75) | {"split_hashes": {}})  # unknown data counts as the same
    thread.join(20)
    ((standing),) = (board.get_stage_status("Markings", "linear", "final") or {}).values()
    assert not trained and (standing.record["same_as"], standing.record["test"]["accuracy"]) == ("a, attempt 0", 0.75)


def test_neither_a_dead_worker_nor_another_recipe_is_waited_for(open_again: Open, jobs: list[Job]) -> None:
    dead = taken(open_again("one"), "a", jobs[0])
    dead.trial.set_user_attr(RECIPE_ATTRIBUTE, "recipe")
    assert open_again().find_recipe("recipe") is not None and open_again().find_recipe("another") is None
    dead._lock.release()
    assert open_again().find_recipe("recipe") is None


def test_a_run_that_was_made_twice_does_no_harm(
    tmp_path: Path, trained: list[tuple[str, float, bool]], open_again: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards = {name: ExperimentScheduler(Experiment(name, parse_suite(SUITE, "x")), open_again(name)) for name in "abc"}
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "find_recipe", lambda *_: None)  # as if both had looked at the same moment
        for name in "ab":
            run_worker(boards[name], tmp_path / name, Reporter())
    run_worker(boards["c"], tmp_path / "c", Reporter())
    assert [folder for folder, *_ in trained] == ["a", "b"], "who comes later takes over one of them"
    for name, made_in in zip("abc", "aba", strict=True):
        assert boards[name].count_runs_by_state() == {"done": 1}
        results = ExperimentResults(boards[name], tmp_path / name)
        (run,) = results.iterate_runs()
        assert (tmp_path / name / run["run"] / "results.json").resolve().is_relative_to(tmp_path / made_in)
        assert boards[name].count_unrequested_runs() == 0


def test_two_workers_that_draw_the_same_setting_do_not_write_into_one_folder(
    tmp_path: Path, open_again: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, folders = threading.Lock(), list[Path]()

    def tune(recipe: Recipe, folder: Path, reporter: Reporter, resume: bool) -> None:
        assert at_work.acquire(blocking=False), "two workers in one folder"
        folders.append(folder)
        time.sleep(0.5)
        made(recipe, folder, 0.5)
        at_work.release()

    monkeypatch.setattr(worker, "tune_model", tune)
    monkeypatch.setattr(Ledger, "find_recipe", lambda *_: None)
    text = SUITE + "search: {space: {training.lr: [0.1]}, sampler: random, trials: 2}"
    boards = [ExperimentScheduler(Experiment("x", parse_suite(text, "x")), open_again()) for _ in range(2)]
    threads = [threading.Thread(target=run_worker, args=(board, tmp_path / "one", Reporter())) for board in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert ExperimentScheduler(boards[0].experiment, open_again()).count_runs_by_state() == {"done": 3}
    assert len(folders) == 2, "one of the search, made once, and one final run"
