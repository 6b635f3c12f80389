"""One recipe, one run: whoever would make it again takes over what was made, and of two at once one waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.bench.conftest import record
from tests.unit.bench.test_worker import made
from toast_cli.bench.scheduler import mutex, worker
from toast_cli.bench.scheduler.jobs import Experiment, Job
from toast_cli.bench.scheduler.lease import JobLease
from toast_cli.bench.scheduler.mutex import made_elsewhere
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.bench.scheduler.trials import Ledger
from toast_cli.bench.scheduler.worker import run_worker
from toast_cli.bench.suite import parse_suite
from toast_cli.bench.tables.build import ExperimentResults
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
    assert board.counts() == {"done": 4}
    search = list((board.stage("Markings", "linear", "search") or {}).values())
    assert len({standing.record["run"] for standing in search}) == 1
    assert search[1].record["same_as"] == "x/Markings/linear/search, attempt 0"


def test_rows_that_differ_in_nothing_are_trained_once_and_both_are_shown(
    tmp_path: Path, trained: list[tuple[str, float, bool]]
) -> None:
    text = SUITE.replace("{linear: {method: linear}}", "{linear: {method: linear}, twin: {method: linear}}")
    board = ExperimentScheduler(Experiment("x", parse_suite(text, "x")), Ledger("memory:", tmp_path / "locks"))
    run_worker(board, tmp_path, Reporter())
    assert len(trained) == 1
    first, twin = ((board.stage("Markings", row, "final") or {}).values() for row in ("linear", "twin"))
    assert [each.record["run"] for each in first] == [each.record["run"] for each in twin]


def test_what_another_suite_made_in_the_same_ledger_is_taken_from_its_folder(
    tmp_path: Path, trained: list[tuple[str, float, bool]], open_again: Open
) -> None:
    for name in ("one", "two"):
        board = ExperimentScheduler(Experiment(name, parse_suite(SUITE, "x")), open_again(name))
        run_worker(board, tmp_path / name, Reporter())
    assert [folder for folder, *_ in trained] == ["one"]
    ((standing),) = (board.stage("Markings", "linear", "final") or {}).values()
    run = standing.record["run"]
    assert standing.with_run_path_from(tmp_path / "one").record["run"] == run
    found = Path(standing.with_run_path_from(tmp_path / "two").record["run"])
    assert found == tmp_path / "one" / run and (found / "results.json").is_file()
    (told,) = ExperimentResults(board, tmp_path / "two").runs()
    assert told["run"] == found.as_posix(), "a table names it by its whole path"
    (tmp_path / "one").rename(tmp_path / "moved")
    assert standing.with_run_path_from(tmp_path / "moved").record["run"] == run


def taken(ledger: Ledger, study: str, job: Job) -> JobLease:
    ledger.fill(ledger.study(study), [job])
    claim = ledger.take(ledger.study(study), [job])
    assert claim is not None
    return claim


@pytest.mark.parametrize("begins", ["earlier", "later"])
def test_of_two_that_make_the_same_recipe_at_once_one_waits_for_the_other(
    begins: str, open_again: Open, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutex, "POLL", 0.02)
    one, other = open_again("one"), open_again("two")
    maker, waiter = taken(one, "a", jobs[0]), taken(other, "b", jobs[0])
    if begins == "later":
        one, other, maker, waiter = other, one, waiter, maker
    assert made_elsewhere(one, maker, "recipe") is None, "it is alone, and makes it"
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(made_elsewhere(other, waiter, "recipe")))
    thread.start()
    thread.join(0.5)
    assert thread.is_alive() and not found
    maker.done(0.75, record(0, 0.75))
    thread.join(20)
    value, left = found[0]
    assert (value, left["test"]["accuracy"]) == (0.75, 0.75)


def test_nobody_waits_for_a_worker_that_died(open_again: Open, jobs: list[Job]) -> None:
    dead, heir = taken(open_again("one"), "a", jobs[0]), taken(open_again("two"), "b", jobs[0])
    assert made_elsewhere(open_again(), dead, "recipe") is None
    dead._lock.release()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(made_elsewhere(open_again(), heir, "recipe")), daemon=True)
    thread.start()
    thread.join(20)
    assert found == [None], "it is the heir's to make"


def test_another_recipe_is_not_waited_for(open_again: Open, jobs: list[Job]) -> None:
    one, other = taken(open_again("one"), "a", jobs[0]), taken(open_again("two"), "b", jobs[1])
    assert made_elsewhere(open_again(), one, "recipe") is None
    assert made_elsewhere(open_again(), other, "another") is None
