"""Token labels from the command line: train a backbone, evaluate it, take its weights; nothing claims predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import toast

SMALL = ["dataset.train_images=16", "dataset.val_images=6", "dataset.test_images=6", "training.batch_size=8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("token-labels") / "run"
    said = toast(
        "tune", "--recipe", "demo/pretrain-2-dominant", "--backbone", "vit_demo_3", "--output-dir", folder, *SMALL
    )
    assert said.code == 0, said.err
    return folder


def test_a_run_is_evaluated_again(run: Path) -> None:
    said = toast("eval", "--run", run, "--json")
    assert said.code == 0, said.err
    recorded = json.loads((run / "results.json").read_text())["test"]
    found = json.loads(said.out)["test"]
    assert {name: found[name] for name in ("accuracy", "patch_accuracy")} == {
        name: recorded[name] for name in ("accuracy", "patch_accuracy")
    }


@pytest.mark.usefixtures("quickly")
def test_its_backbone_is_weights_for_the_next_stage(run: Path, here: Path) -> None:
    assert toast("export", "--run", run, "--what", "backbone", "--out", "stage1.safetensors").code == 0
    said = toast(
        "tune", "--recipe", "demo/pretrain-2-dominant", "--backbone", "vit_demo_3", "--weights", "stage1.safetensors",
        "--output-dir", "next", *SMALL,
    )  # fmt: skip
    assert said.code == 0, said.err


def test_pictures_show_maps_and_no_prediction(run: Path, here: Path) -> None:
    said = toast("visualize-attention", "--run", run, "--test-image", "0", "--out", here)
    assert said.code == 0, said.err
    assert "Prediction" not in said.out


def test_a_graph_is_refused_with_what_to_do(run: Path, here: Path) -> None:
    toast("export", "--run", run, "--format", "torch-export").fails(
        2, "--what backbone", error="task.predicts-no-classes"
    )


def test_other_sources_of_labelled_pixels_can_be_used(here: Path) -> None:
    said = toast(
        "tune", "--backbone", "vit_demo_3", "--dataset", "demo-segmentation", "--method", "full",
        "task.name=token-labels", "task.background=ground", "--output-dir", "run", "training.epochs=1", *SMALL,
    )  # fmt: skip
    assert said.code == 0, said.err
