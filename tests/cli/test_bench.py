"""`toast bench`: a suite from one command, interrupted, shared by workers that are killed, and shown."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.cli.conftest import TINY_DEMO, toast
from tests.forks import fork
from toast_cli.bench.experiment_folder import load_experiment
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.bench.scheduler.trials import open_ledger
from toast_cli.bench.scheduler.worker import run_worker
from toast_cli.training import tune
from toast_cli.training.reporter import Reporter

SUITE = """
backbone: vit_demo_3
datasets: {Markings: demo}
rows:
  linear: {method: linear}
  lora: {method: lora}
seeds: [3]
search:
  space: {training.lr: [0.003, 0.03]}
"""
TINY = [*TINY_DEMO, "training.epochs=1", "--device", "cpu"]


DEMO = ["bench", "demo", "--row", "linear", "--seed", "3", *TINY, "training.warmup_epochs=0"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The demo's suite in small, finished, and what the command said."""
    folder = tmp_path_factory.mktemp("bench")
    said = toast(*DEMO, "--out", folder / "out")
    assert said.code == 0, said.err
    return folder, said


def test_one_command_searches_trains_and_fills_the_table(finished: tuple[Path, Any]) -> None:
    folder, said = finished
    assert "3 runs, about" in said.err and "of device time: " in said.err
    assert "The demo" in said.out and "645" in said.out and "TOAST-Lite" in said.out
    assert "Single seed, 3:" in said.out
    runs = sorted((folder / "out" / "runs").iterdir())
    assert len(runs) == 3
    assert {path.name for path in (folder / "out").iterdir()} >= {"ledger.db", "tables", "page.html", "suite.yaml"}


@pytest.mark.slow
def test_the_demo_as_a_user_types_it_fills_its_table(here: Path) -> None:
    said = toast("bench", "demo")
    assert said.code == 0, said.err
    assert "over seeds 0, 1, 2." in said.out
    status = json.loads(toast("bench", "status", "--json").out)
    assert (status["runs"], status["failed"]) == ({"done": 20}, []), "four rows, two settings each, three seeds"
    with (here / "bench" / "demo" / "tables" / "runs.csv").open(encoding="utf-8", newline="") as file:
        runs = list(csv.DictReader(file))
    assert sorted({(run["row"], run["seed"]) for run in runs}) == sorted(
        (row, seed) for row in ("linear", "lora", "toast", "toast-lite") for seed in "012"
    )
    chance = 0.2
    assert all(float(run["value"]) > chance for run in runs if run["row"] != "linear")
    assert (here / "bench" / "demo" / "page.html").is_file()


def test_workers_that_leave_runs_undone_are_said_and_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toast_cli.bench.scheduler.worker_pool.run_worker_pool", lambda *_: [1, -15])
    said = toast(*DEMO, "--workers", "2", "--out", tmp_path / "out")
    said.fails(1, "3 runs", "1, -15", "out/workers")


def test_only_final_runs_look_at_the_test_split_and_each_does_once(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    for run in (folder / "out" / "runs").iterdir():
        results, final = json.loads((run / "results.json").read_text()), "search" not in run.name
        assert (results["test"] is not None) == final == (run / "test_answers.json").is_file()
        assert results["validation"] is not None
        assert (run / "adapter").is_dir() == final and not (run / "checkpoints").exists()


def test_the_final_runs_have_what_validated_best(finished: tuple[Path, Any]) -> None:
    board = ExperimentScheduler(*_opened(finished[0] / "out"))
    search = (board.get_stage_status("Markings", "linear", "search") or {}).values()
    best = max(search, key=lambda each: (each.trial.value, -each.record["validation"]["loss"]))  # type: ignore[union-attr]
    (final,) = (board.get_stage_status("Markings", "linear", "final") or {}).values()
    assert final.record["params"] == best.record["params"]


def test_a_finished_suite_is_not_run_again_but_told(
    finished: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished
    monkeypatch.setattr("toast_cli.bench.scheduler.worker.tune_model", None)
    said = toast(*DEMO, "--out", folder / "out")
    assert said.code == 0 and "Nothing is left to run." in said.err
    status = json.loads(toast("bench", "status", "--out", folder / "out", "--json").out)
    assert status["runs"] == {"done": 3} and status["failed"] == []
    shown = toast("bench", "tables", "--out", folder / "out", "--json")
    runs = json.loads(shown.out)["runs"]
    assert len(runs) == 1 and all(run["test_hash"] and run["versions"] and run["run"] for run in runs)


def test_a_setting_that_came_too_late_is_said_by_every_verb(
    finished: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExperimentScheduler, "list_overtaken_cells", lambda board: ["validated better, but kept"])
    out = ("--out", finished[0] / "out")
    for words in (DEMO, ["bench", "status"], ["bench", "tables"]):
        assert "validated better, but kept" in toast(*words, *out).err


def test_a_dry_run_tells_the_cost_and_writes_nothing(here: Path) -> None:
    (here / "small.yaml").write_text(SUITE)
    said = toast("bench", "small.yaml", "--dry-run", "--json", "--row", "linear", "--seed", "5", *TINY)
    assert said.code == 0, said.err
    search, final = json.loads(said.out)
    assert (search["runs"], final["runs"]) == (2, 1)
    assert 0 < search["seconds"] < 60 and search["total"] == 2 * search["seconds"]
    assert [path.name for path in here.iterdir()] == ["small.yaml"]
    toast("bench", "small.yaml", "--row", "lorra").fails(2, "'lorra'", "'lora'", error="bench.unknown-row")
    toast("bench", "nosuch").fails(2, "'nosuch'", error="bench.unknown-suite")
    toast("bench", "status").fails(2, error="bench.no-experiment")
    assert "vtab1k" in toast("bench", "ls").out


def test_a_run_that_fails_is_kept_with_its_reason_while_others_go_on_and_is_retried_on_request(here: Path) -> None:
    # Photos has none of the demo's fields: what is set for one data set alone stays with it.
    sizes = ", ".join(word.replace("=", ": ") for word in TINY_DEMO if word.startswith("dataset."))
    two = f'{{Markings: {{source: demo, set: {{{sizes}}}}}, Photos: "folder:photos"}}'
    (here / "small.yaml").write_text(SUITE.replace("{Markings: demo}", two).partition("search:")[0])
    words = ["bench", "small.yaml", "--out", "out", "--row", "linear", "--join", *TINY]
    words = [word for word in words if "dataset." not in word]
    said = toast(*words)
    assert said.code == 1
    status = json.loads(toast("bench", "status", "--out", "out", "--json").out)
    assert status["runs"] == {"done": 1, "failed": 1}
    assert "photos" in status["failed"][0]["reason"]
    assert toast(*words).code == 1, "it is not tried again unasked"
    board = ExperimentScheduler(*_opened(here / "out"))
    assert len(board.open_study("Photos", "linear", "final").get_trials()) == 1
    assert toast(*words, "--retry").code == 1
    assert len(board.open_study("Photos", "linear", "final").get_trials()) == 2


def _opened(out: Path) -> Any:
    experiment, url = load_experiment(out)
    return experiment, open_ledger(out, os.environ.get("TOAST_BENCH_LEDGER") or url)


class Listening(Reporter):
    """Writes down what a worker says."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def report_message(self, text: str) -> None:
        with self.log.open("a") as log:
            log.write(text + "\n")


def worker(out: Path, log: Path) -> None:
    """A worker's process; it counts every run that it takes to its end."""
    evaluate = tune.evaluate_model

    def counted(*given: Any, **more: Any) -> Any:
        result = evaluate(*given, **more)
        with log.with_suffix(".ends").open("a") as ends:
            ends.write("end\n")
        return result

    tune.evaluate_model = counted  # what `tune` measures the test split with, once a run
    run_worker(ExperimentScheduler(*_opened(out)), out, Listening(log))


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 240
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_interrupted_suite_says_how_it_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Any, recipe: Any, *_: Any, reporter: Any = None, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("toast_cli.bench.scheduler.worker.tune_model", interrupted)
    (here / "small.yaml").write_text(SUITE)
    said = toast("bench", here / "small.yaml", "--out", here / "out", "--join", *TINY_DEMO, "--device", "cpu")
    assert said.code == 130
    assert "Run the same command again to resume" in said.err and "tune --resume" not in said.err


@pytest.mark.nightly
@pytest.mark.parametrize("server", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_workers_are_killed_and_started_again_and_nothing_is_lost_or_done_twice(
    here: Path, server: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if server and "TOAST_TEST_LEDGER" not in os.environ:
        pytest.skip("TOAST_TEST_LEDGER names no database, such as postgresql://USER@HOST/DB or mysql+pymysql://...")
    if server:
        monkeypatch.setenv("TOAST_BENCH_LEDGER", os.environ["TOAST_TEST_LEDGER"])
    suite = here / f"small-{time.time_ns()}.yaml"  # by whose name a database that others use tells them apart
    suite.write_text(SUITE)
    out = here / "out"
    tiny = [*TINY_DEMO, "training.epochs=6", "--device", "cpu"]
    # Only what was asked for is kept, by a worker that finds nothing it may do.
    board_words = ["bench", str(suite), "--out", str(out), "--join", *tiny]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("toast_cli.bench.scheduler.worker.run_worker", lambda *_: None)
        assert toast(*board_words).code == 0

    def start(number: int) -> Any:
        return fork(worker, out, here / f"{number}.log")

    def epochs(runs: str = "*") -> list[int]:
        return [file.read_text().count('"epoch", "step"') for file in out.glob(f"runs/{runs}/metrics.jsonl")]

    def kill(*processes: Any) -> None:
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()

    def said(*numbers: int) -> str:
        return "".join((here / f"{number}.log").read_text() for number in numbers)

    searching = [start(0), start(1)]
    until(lambda: sum(count >= 2 for count in epochs()) == 2)
    kill(*searching)
    assert not list(out.glob("runs/*/results.json"))
    further = [start(2), start(3)]
    until(lambda: any(count >= 2 for count in epochs("*-seed3-*")))
    kill(*further)
    assert said(2, 3).count("Resuming after epoch") == 2, "what was begun went on, and did not start anew"
    last = [start(4), start(5)]
    for process in last:
        process.join(240)
        assert process.exitcode == 0
    assert "Resuming after epoch" in said(4, 5)
    board = ExperimentScheduler(*_opened(out))
    assert board.count_runs_by_state() == {"done": 6}, "of two rows, two settings searched and one final run"
    trials = [trial for where in board.iterate_stages() for trial in board.open_study(*where).get_trials()]
    completed = [trial.user_attrs["key"] for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(completed) == len(set(completed)) == 6
    assert epochs() == [6] * 6
    ends = "".join(file.read_text() for file in here.glob("*.ends"))
    assert ends.count("end") == 2, "the test split was looked at once by every final run"
    for row in ("linear", "lora"):
        (final,) = (board.get_stage_status("Markings", row, "final") or {}).values()
        assert board.get_locked_params("Markings", row) == final.record["params"]
