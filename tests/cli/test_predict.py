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


def test_a_resumed_table_says_what_is_new(toast_run: Path, here: Path, pictures: MakePictures) -> None:
    folder = pictures(cat=3)
    (folder / "cut.png").write_bytes(b"")
    words = ["predict", folder, "--run", toast_run, "--out", "t.csv"]
    assert "3 of 4 images labelled, 1 could not be read (" in toast(*words).err
    again = toast(*words, "--resume")
    assert "Nothing new: 3 of 4 images were labelled already, 1 could not be read\n" in again.err
    assert "per second" not in again.err
    (folder / "cat" / "0.png").rename(folder / "cat" / "new.png")
    said = toast(*words, "--resume").err  # the row of a file that is gone stays
    assert "4 of 5 images labelled, 1 of them now, 1 could not be read (" in said
    record = json.loads(toast(*words, "--resume", "--json").out)
    assert record["kept"] == 4 and record["images_per_second"] is None


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--resume"], "cli.missing-option"),
        (["--out", "table.xlsx"], "cli.invalid-value"),
        (["--split", "test"], "cli.conflicting-options"),
        (["--workers", "-1"], "cli.usage"),
        (["--beams", "1"], "cli.conflicting-options"),
        (["--pass", "first"], "cli.missing-option"),
        (["--features", "features.npy"], "cli.invalid-value"),
    ],
)
def test_options_that_cannot_be_met_are_refused(
    words: list[str], error: str, toast_run: Path, here: Path, pictures: MakePictures
) -> None:
    toast("predict", pictures(cat=1), "--run", toast_run, *words).fails(2, error=error)
    assert {path.name for path in here.iterdir()} == {"pictures"}


def test_answers_are_printed_and_written(text_run: Path, here: Path) -> None:
    Path("p.jsonl").write_text('{"prompt": "Hi"}\n"Say yes."\n')
    words = ["predict", "p.jsonl", "--run", text_run, "--max-new-tokens", "5"]
    said = toast(*words)
    assert said.code == 0, said.err
    assert "> Hi\n" in said.out and "> Say yes.\n" in said.out and "2 of 2 prompts answered" in said.err
    assert toast(*words, "--out", "answers.jsonl").code == 0
    record = json.loads(toast(*words, "--json").out)
    answers = [json.loads(line)["answer"] for line in Path("answers.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in record["predictions"]] == answers and record["prompts"] == 2
    toast(*words, "--top", "2").fails(2, "--top", error="cli.conflicting-options")
    Path("p.jsonl").write_text("5\n")
    toast(*words).fails(1, "p.jsonl:1", error="text.no-answers")
