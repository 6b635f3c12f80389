"""`toast eval` on every split, on test images alone, and on data with some of the classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import MakePictures, toast

SHORT = ["--backbone", "vit_demo_3", "--method", "linear", "training.epochs=2", "training.batch_size=8"]


@pytest.fixture
def run(here: Path, pictures: MakePictures) -> Path:
    """A run on three classes, the last of which has a single image."""
    root = pictures(ant=12, bee=12, cat=1)
    said = toast("tune", "--dataset", f"folder:{root}", *SHORT, "--output-dir", here / "run")
    assert said.code == 0, said.err
    shown = " ".join(said.out.split())
    assert "Warning: val: no image of class 'cat': nothing is measured of it." in shown
    assert "images are too few to choose an epoch by" in shown
    low, high = json.loads((here / "run" / "results.json").read_text())["test"]["accuracy_interval"]
    assert f"[{100 * low:.1f}, {100 * high:.1f}]" in shown
    return here / "run"


def test_all_splits_are_measured_together(run: Path) -> None:
    found = {}
    for split in ("train", "val", "test", "all"):
        said = toast("eval", "--run", run, "--split", split, "--json")
        assert said.code == 0, said.err
        found[split] = json.loads(said.out)[{"val": "validation"}.get(split, split)]
    parts = [found[split] for split in ("train", "val", "test")]
    assert found["all"]["images"] == sum(part["images"] for part in parts) == 25
    right = sum(part["accuracy"] * part["images"] for part in parts)
    assert found["all"]["accuracy"] == pytest.approx(right / 25)
    toast("eval", "--run", run, "--split", "all", "--sweep").fails(2, error="cli.conflicting-options")


def test_other_data_may_have_test_images_alone_and_some_of_the_classes(run: Path, here: Path) -> None:
    source = here / "pictures"
    shutil.copytree(source / "bee", here / "only" / "test" / "bee")
    shutil.copytree(source / "cat", here / "only" / "test" / "cat")
    said = toast("eval", "--run", run, "--dataset", f"folder:{here / 'only'}", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert told["test"]["images"] == 13
    assert "test: no image of class 'ant': nothing is measured of it." in told["warnings"]
    shutil.copytree(source / "ant", here / "single" / "ant")
    single = toast("eval", "--run", run, "--dataset", f"folder:{here / 'single'}", "--split", "all", "--json")
    assert single.code == 0, single.err
    alone, whole = (
        json.loads(said)["all"] for said in (single.out, toast("eval", "--run", run, "--split", "all", "--json").out)
    )
    assert alone["images"] == 12
    # Labels are matched by the names of the classes: both parts together are right where the whole is.
    assert told["test"]["accuracy"] * 13 + alone["accuracy"] * 12 == pytest.approx(whole["accuracy"] * 25)
    (here / "only.csv").write_text("path,label,split\npictures/bee/0.png,bee,test\npictures/bee/1.png,bee,test\n")
    table = toast("eval", "--run", run, "--dataset", f"table:{here / 'only.csv'}", "--json")
    assert json.loads(table.out)["test"]["images"] == 2, table.err

    shutil.copytree(source / "bee", here / "only" / "test" / "zebu")
    toast("eval", "--run", run, "--dataset", f"folder:{here / 'only'}").fails(1, "'zebu'", error="data.wrong-classes")
    toast("tune", "--dataset", f"folder:{here / 'only'}", *SHORT).fails(1, error="data.no-train-split")
    (here / "classes.txt").write_text("bee\nzebu\ncat\n")
    named = ["--dataset", f"folder:{here / 'only'}", f"dataset.class_file={here / 'classes.txt'}"]
    toast("tune", *named, *SHORT, "--output-dir", here / "none").fails(2, error="data.no-train-split")
    assert not (here / "none").exists()
