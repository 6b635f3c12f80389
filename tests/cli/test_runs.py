"""`toast runs`: what is in a folder of runs, and nothing but runs is deleted."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from tests.cli.conftest import toast
from toast_cli.cli.app import app

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture
def runs(here: Path) -> Path:
    """Three runs, the first of them the newest, and a folder that holds something else."""
    fixtures = {"new": "run_0_2_lora", "cut": "run_0_2_toast_lite", "old": "run_0_1"}
    for age, (name, fixture) in enumerate(fixtures.items()):
        shutil.copytree(FIXTURES / fixture, here / "runs" / name)
        for file in (here / "runs" / name).rglob("*"):
            os.utime(file, (time.time() - 100_000 * age - 10,) * 2)
    (here / "runs" / "cut" / "results.json").unlink()
    (here / "runs" / "mine").mkdir()
    (here / "runs" / "mine" / "recipe.yaml").write_text("backbone: vit_b16\n")
    return here / "runs"


def listed(*arguments: str) -> dict[str, dict[str, object]]:
    said = toast("runs", "ls", "--json", *arguments)
    assert said.code == 0, said.err
    return {run["name"]: run for run in json.loads(said.out)}


def test_runs_are_listed_by_age_with_their_numbers(runs: Path) -> None:
    found = listed()
    assert list(found) == ["new", "cut", "old"]
    new = found["new"]
    assert (new["state"], new["data"], new["backbone"], new["method"]) == ("finished", "demo", "vit_demo_3", "lora")
    results = json.loads((runs / "new" / "results.json").read_text())
    assert new["metrics"]["test"]["accuracy"] == results["test"]["accuracy"]
    assert new["size"] == sum(file.stat().st_size for file in (runs / "new").rglob("*") if file.is_file())
    cut = found["cut"]
    assert (cut["state"], cut["epoch"], cut["epochs"]) == ("interrupted", 2, 2)
    assert list(cut["metrics"]) == ["validation"]
    said = toast("runs", "ls")
    row = next(line.split() for line in said.out.splitlines() if "old" in line)
    assert row[-4:-2] == ["2", "d"]
    assert "interrupted, epoch 2 of 2" in said.out
    said = toast("runs", "ls", "--root", "elsewhere").out
    assert said.startswith("No runs in elsewhere. ") and "--root FOLDER" in said


@pytest.mark.parametrize(
    ("file", "content"),
    [("results.json", "{"), ("results.json", '{"test": 1, "sha256": "no"}'), ("recipe.yaml", "a: [")],
)
def test_damaged_runs_are_listed_as_such(runs: Path, file: str, content: str) -> None:
    (runs / "new" / file).write_text(content)
    found = listed()
    assert found["new"]["state"] == "damaged" and file in str(found["new"]["damage"])
    assert found["old"]["state"] == "finished"
    assert "damaged" in toast("runs", "show", "new").out
    (runs / "new" / "recipe.yaml").unlink()
    assert listed()["new"]["state"] == "damaged"
    assert toast("runs", "rm", "new", "--yes").code == 0


def test_a_cut_line_of_metrics_is_passed_over(runs: Path) -> None:
    with (runs / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epoch", "ep')
    assert listed()["cut"]["epoch"] == 2


def test_one_run_is_shown(runs: Path) -> None:
    said = toast("runs", "show", "new")
    assert said.code == 0 and "accuracy, test" in said.out and "lora on demo, vit_demo_3" in said.out
    shown = json.loads(toast("runs", "show", "runs/new", "--json").out)
    assert shown["results"]["seed"] == shown["seed"] == 0
    toast("runs", "show", "nwe").fails(2, "Did you mean 'new'?", error="run.unknown-run")


def test_runs_are_deleted_only_after_a_yes(runs: Path) -> None:
    refused = CliRunner().invoke(app, ["runs", "rm", "new", "old"], input="n\n")
    assert refused.exit_code == 1 and (runs / "new").is_dir()
    done = CliRunner().invoke(app, ["runs", "rm", "new", "runs/old", "old"], input="y\n")
    assert done.exit_code == 0 and "these 2 runs" in done.stderr
    assert sorted(path.name for path in runs.iterdir()) == ["cut", "mine"]


def test_nothing_but_a_run_is_deleted(runs: Path) -> None:
    (runs / "link").symlink_to(runs / "new")
    for name in ("mine", "link", ".", "..", str(runs)):
        toast("runs", "rm", "old", name, "--yes").fails(2, "not a run folder", error="run.not-a-run-folder")
    with FileLock(runs / "cut" / "checkpoints" / ".lock"):
        assert listed()["cut"]["state"] == "running"
        toast("runs", "rm", "old", "cut", "--yes").fails(1, "Another process", error="run.locked")
    assert {"new", "cut", "old", "mine"} <= {path.name for path in runs.iterdir()}
    (runs / "old" / "outside").symlink_to(runs / "mine")
    assert toast("runs", "rm", "old", "--yes").code == 0
    assert (runs / "mine" / "recipe.yaml").is_file() and not (runs / "old").exists()
