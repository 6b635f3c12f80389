"""`toast predict` as a user types it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.cli.conftest import MakePictures, toast


def test_answers_on_the_test_split_are_those_that_the_run_recorded(toast_run: Path, here: Path) -> None:
    said = toast("predict", "demo", "--split", "test", "--run", toast_run, "--out", "table.csv", "--json")
    assert said.code == 0, said.err
    recorded = json.loads((toast_run / "test_answers.json").read_text())
    classes = json.loads((toast_run / "data.json").read_text())["classes"]
    with Path("table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [classes[chosen] for chosen in recorded["chosen"]]
    assert json.loads(said.out)["images"] == len(recorded["index"]) == 20


def test_images_are_listed_and_broken_ones_at_the_end(toast_run: Path, here: Path, pictures: MakePictures) -> None:
    folder = pictures(cat=30, dog=1)
    (folder / "cut.png").write_bytes((folder / "dog" / "0.png").read_bytes()[:99])
    said = toast("predict", folder, "--run", toast_run)
    assert said.code == 0, said.err
    assert "cat/0.png" in said.out and "... and 11 more" in said.out and "cut.png" not in said.out
    assert "31 of 32 images labelled, 1 could not be read" in said.err
    assert f"Not read: {folder / 'cut.png'}: " in said.err
    shown = json.loads(toast("predict", folder, "--run", toast_run, "--json", "--top", "2").out)
    assert len(shown["predictions"]) == 32 and sum(shown["classes"].values()) == 31
    assert [one["path"] for one in shown["unreadable"]] == [str(folder / "cut.png")]
    toast("predict", folder / "cut.png", "--run", toast_run).fails(1, "cut.png", error="image.unreadable")
    assert list(here.glob("*.jsonl")) == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--resume"], "cli.missing-option"),
        (["--out", "table.xlsx"], "cli.invalid-value"),
        (["--split", "test"], "cli.conflicting-options"),
        (["--workers", "-1"], "cli.usage"),
    ],
)
def test_options_that_cannot_be_met_are_refused(
    words: list[str], error: str, toast_run: Path, here: Path, pictures: MakePictures
) -> None:
    toast("predict", pictures(cat=1), "--run", toast_run, *words).fails(2, error=error)
    assert {path.name for path in here.iterdir()} == {"pictures"}
