"""Relative paths of a run are found from another folder, and runs are named after their data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toast_cli.data.paths import get_dataset_label
from toast_cli.recipe.parse import build_dataset_options, build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.training.data.recorded_paths import find_recorded_paths


def recipe_of(dataset: Any, **more: Any) -> Recipe:
    raw = {"backbone": "vit_demo_3", "dataset": dataset, "method": "linear", **more}
    return build_recipe(raw, {}, origin="a test")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was started in the folder `start`, with the data folder `start/data`."""
    run = tmp_path / "start" / "runs" / "one"
    run.mkdir(parents=True)
    folders = {"folder": str(tmp_path / "start"), "data_dir": str(tmp_path / "start" / "data")}
    (run / "environment.json").write_text(json.dumps(folders))
    monkeypatch.chdir(tmp_path)
    return run


def test_relative_data_and_weights_are_found_from_another_folder(run: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    (start / "data" / "pets").mkdir(parents=True)
    (start / "w.safetensors").touch()
    (start / "classes.txt").touch()
    dataset = {"name": "folder", "path": "pets", "class_file": "classes.txt"}
    found = find_recorded_paths(recipe_of(dataset, backbone={"name": "vit_demo_3", "weights": "w.safetensors"}), run)
    assert found.dataset.path == str(start / "data" / "pets")  # type: ignore[attr-defined]
    assert found.dataset.class_file == str(start / "classes.txt")  # type: ignore[attr-defined]
    assert found.backbone.weights == str(start / "w.safetensors") and found.data_dir == str(start / "data")
    assert find_recorded_paths(recipe_of("demo"), run / "adapter").data_dir == str(start / "data")


def test_paths_that_are_gone_or_names_of_the_hub_stay(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dataset in ("folder:pets", "hf:ethz/food101", "shards:https://example.org/a-{0..3}.tar"):
        recipe = recipe_of({"name": dataset.partition(":")[0], "path": dataset.partition(":")[2]})
        assert find_recorded_paths(recipe, run) is recipe
    (run.parents[1] / "pets").mkdir()
    monkeypatch.chdir(run.parents[1])
    recipe = recipe_of("folder:pets")
    assert find_recorded_paths(recipe, run) is recipe  # as typed, from the folder where it was typed
    (run / "environment.json").unlink()  # as a run of an earlier version
    monkeypatch.chdir("runs")
    assert find_recorded_paths(recipe, run) is recipe


def test_a_pattern_of_shards_is_found_by_its_folder(run: Path) -> None:
    (run.parents[1] / "shards").mkdir()
    found: Any = find_recorded_paths(recipe_of({"name": "shards", "path": "shards/a-{0..3}.tar", "classes": 2}), run)
    assert found.dataset.path == str(run.parents[1] / "shards" / "a-{0..3}.tar")


@pytest.mark.parametrize(
    ("shorthand", "label"),
    [
        ("folder:pets", "pets"),
        ("folder:/a/b/my.photos/", "my.photos"),
        ("folder:data\\pets", "pets"),
        ("table:x/labels.csv", "labels"),
        ("archive:pets.tar.gz", "pets"),
        ("hf:ethz/food101", "food101"),
        ("shards:birds/train-{0000..0003}.tar", "birds"),
        ("structured:count", "structured-count"),
        ("demo", "demo"),
    ],
)
def test_runs_are_named_after_their_data(shorthand: str, label: str) -> None:
    assert get_dataset_label(build_dataset_options(shorthand, {})) == label


def test_a_run_on_the_current_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(tmp_path / "birds")
    assert get_dataset_label(build_dataset_options("folder:.", {})) == "birds"
