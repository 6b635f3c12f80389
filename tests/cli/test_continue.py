"""A tuned model is the start of another run, and a file that cannot be read is met before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import MakePictures, toast
from toast_cli.storage.lineage import read_lineage

SHORT = ["training.epochs=1", "training.batch_size=8", "--device", "cpu"]


@pytest.mark.usefixtures("quickly")
def test_a_run_and_its_exports_are_continued_on_other_classes(
    here: Path, linear_run: Path, pictures: MakePictures
) -> None:
    data = pictures(circle=12, fox=12)
    assert toast("export", "--run", linear_run, "--format", "hf", "--out", "hf").code == 0
    for number, start in enumerate((linear_run, here / "hf")):
        words = ["--init-from", start, "--dataset", f"folder:{data}", "--output-dir", here / str(number), *SHORT]
        said = toast("tune", *words)
        assert said.code == 0, said.err
        told = " ".join(said.err.split())
        assert f"Recipe: that of the start, {start}" in told and f"Start: {start} (linear on demo, seed 0)" in told
        assert "new, with fresh rows: 'circle', 'fox'" in told and "dropped: " in told
    assert "Not compared with the data" in told, "an export has no record of its data"
    again = toast("tune", "--init-from", here / "0", "--output-dir", here / "2", *SHORT)
    assert "0 (linear on pictures, seed 0), which starts from" in " ".join(again.err.split()), again.err
    assert [step["kind"] for step in read_lineage(here / "2").start] == ["tuned", "tuned"]
    assert toast("export", "--run", here / "2", "--format", "safetensors", "--out", "two").code == 0
    assert str(here).encode() not in (here / "two.safetensors").read_bytes()
    assert "Start: " in (here / "2" / "adapter" / "README.md").read_text()
    assert [(step["dataset"], step["data"]) for step in read_lineage(here / "2").start] == [
        ("demo", "demo"),
        ("folder", "pictures"),
    ]
    dry = toast("tune", "--init-from", here / "0", "--dry-run", *SHORT)
    assert dry.code == 0 and "Start: " in dry.out


def test_a_recipe_given_by_name_keeps_the_method_of_the_start(here: Path, linear_run: Path) -> None:
    said = toast("tune", "--recipe", "general/lora", "--init-from", linear_run, "--dataset", "demo", "--dry-run")
    assert said.code == 0, said.err
    assert "The method is linear, that of the start, and not lora of the recipe." in " ".join(said.err.split())
    assert "name: linear" in said.out and "name: vit_demo\n" in said.out
    toast("tune", "--init-from", linear_run, "--backbone", "vit_demo_3", "--output-dir", here / "x").fails(
        2, error="adapter.wrong-backbone"
    )
    assert not (here / "x").exists()


def test_unreadable_files_are_named_before_the_first_step_and_later_the_run_goes_on(
    here: Path, pictures: MakePictures
) -> None:
    data = pictures(cat=10, dog=10)
    words = ["--backbone", "vit_demo_3", "--method", "linear", "--dataset", f"folder:{data}", *SHORT]
    whole = (data / "cat" / "0.png").read_bytes()
    (data / "cat" / "0.png").write_bytes(whole[:2000])
    (data / "dog" / "1.png").write_bytes(b"")
    said = toast("tune", *words, "--output-dir", here / "run")
    said.fails(1, "cat/0.png", "dog/1.png", "images.on_error=skip", error="image.unreadable")
    assert not (here / "run").exists()
    (data / "cat" / "0.png").write_bytes(whole[:2000] + bytes(100) + whole[2100:])  # its header and end are intact
    (data / "dog" / "1.png").write_bytes(whole)
    stopped = toast("tune", *words, "--output-dir", here / "run")
    stopped.fails(1, f"toast tune --resume {here / 'run'} images.on_error=skip", error="image.unreadable")
    resumed = toast("tune", "--resume", here / "run", "images.on_error=skip")
    assert resumed.code == 0, resumed.err
    results = json.loads((here / "run" / "results.json").read_text())
    assert [list(names) for names in results["skipped"].values()] == [["cat/0.png"]] and results["extensions"] == 1
