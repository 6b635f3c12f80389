"""`toast eval` writes what the model answered into the run, as tables, pictures and a page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.cli.conftest import toast
from tests.scenes import demo_model, kept
from toast_cli.utils.errors import ToastError

FILES = {"predictions.csv", "per_class.csv", "confusion.csv", "confusion.png", "reliability.png", "evaluation.json"}


@pytest.fixture
def run(here: Path) -> Path:
    return kept(demo_model("linear"), here / "run")


def test_an_evaluation_leaves_its_files_in_the_run_and_says_where(run: Path) -> None:
    said = toast("eval", "--run", run, "--report", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    folder = run / "evaluations" / "demo-test"
    assert found["folder"] == str(folder) and f"{folder} (predictions.csv, per_class.csv" in said.err
    assert {file.name for file in folder.iterdir()} == FILES | {"report.html"}
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and all(0 < float(row["probability"]) <= 1 for row in rows)
    right = [row["label"] == row["choice"] for row in rows]
    assert sum(right) / 12 == found["test"]["accuracy"]
    page = (folder / "report.html").read_text()
    assert f"{found['test']['accuracy']:.2%} of 12" in page and page.count("<figure>") == 12 - sum(right)

    assert toast("eval", "--run", run).code == 0
    assert {file.name for file in folder.iterdir()} == FILES, "a page of earlier numbers is not kept"
    other = toast("eval", "--run", run, "--dataset", "demo", "--split", "val", "--out", "n.json", "--json")
    assert json.loads(other.out)["folder"] == "n-answers"
    assert {file.name for file in Path("n-answers").iterdir()} == FILES
    assert [file.name for file in folder.parent.iterdir()] == ["demo-test"]


def test_a_folder_that_cannot_be_written_costs_the_files_and_not_the_numbers(run: Path) -> None:
    (run / "evaluations").write_text("in the way")
    said = toast("eval", "--run", run)
    assert said.code == 0 and "accuracy, test" in said.out
    assert "No tables and pictures were written" in said.err and "--out" in said.err
    said = toast("eval", "--run", run, "--report")
    said.fails(1, "could not be written", error="disk.cannot-write")
    assert "accuracy, test" in said.out


def test_a_page_is_refused_before_the_work_where_there_are_no_classes(
    run: Path, text_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toast("eval", "--run", run, "--report", "--sweep").fails(2, "--report", error="cli.conflicting-options")

    def refuse(*_: object, **__: object) -> None:
        raise ToastError("evaluated", code="internal.error")

    monkeypatch.setattr("toast_cli.evaluation.evaluate_run.evaluate_model", refuse)
    toast("eval", "--run", text_run, "--report").fails(2, "Leave --report out.", error="task.no-classes")
