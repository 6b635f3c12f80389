"""The four commands of every day, on one run that they share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import toast


def test_tune_leaves_a_finished_run(toast_run: Path) -> None:
    assert {path.name for path in toast_run.iterdir()} >= {
        "recipe.yaml", "environment.json", "metrics.jsonl", "checkpoints", "adapter", "results.json",
    }  # fmt: skip
    results = json.loads((toast_run / "results.json").read_text())
    assert results["test"]["images"] == 20 and 0 <= results["test"]["accuracy"] <= 1


def test_eval_gives_the_numbers_that_the_run_recorded(toast_run: Path, here: Path) -> None:
    said = toast("eval", "--run", toast_run, "--json", "--out", here / "numbers.json")
    assert said.code == 0, said.err
    recorded = json.loads((toast_run / "results.json").read_text())["test"]
    assert json.loads(said.out)["test"]["loss"] == pytest.approx(recorded["loss"], rel=1e-6)


def test_visualize_attention_draws_both_passes(toast_run: Path, here: Path) -> None:
    said = toast("visualize-attention", "--test-image", "2", "--run", toast_run, "--out", here, "--json")
    assert said.code == 0, said.err
    ((view,),) = (record["views"] for record in json.loads(said.out))
    assert 0 < view["share_inside"]["pass_one"] < 1 and 0 < view["share_inside"]["pass_two"] < 1
    with Image.open(here / "test-2.png") as figure:
        assert figure.width > figure.height > 300


@pytest.mark.usefixtures("quickly")
def test_export_writes_a_file_that_is_evaluated_alike(toast_run: Path, here: Path) -> None:
    said = toast("export", "--run", toast_run, "--what", "full", "--out", here / "model.safetensors")
    assert said.code == 0, said.err
    said = toast("eval", "--run", here / "model.safetensors", "--json")
    recorded = json.loads((toast_run / "results.json").read_text())["test"]
    assert json.loads(said.out)["test"]["loss"] == pytest.approx(recorded["loss"], rel=1e-6)
