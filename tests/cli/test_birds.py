"""The main job as the README has it, on a small copy of CUB-200-2011's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.cli.conftest import toast
from tests.layouts import cub


@pytest.fixture
def birds(here: Path) -> Path:
    """A folder with CUB in it."""
    (here / "data").mkdir()
    cub(here / "data")
    return here


def save_weights(network: str, file: Path) -> None:
    """Weights of one of timm's networks as a file, random: nothing is downloaded."""
    torch.manual_seed(0)
    save_file(timm.create_model(network, num_classes=0).state_dict(), file)


def run_the_main_job(birds: Path, weights: str) -> None:
    """Tune, look at what came out, and show an image."""
    said = toast(
        "tune", "--backbone", "vit_b16", "--dataset", "cub", "--method", "toast-lite", "--weights", weights,
        "--device", "cpu", "training.epochs=2", "training.warmup_epochs=1",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "Recipe: fgvc/cub-vit_b16-toast-lite" in said.err
    assert "This copy has 12 training and 6 test images of 3 classes" in " ".join(said.err.split())
    run = birds / "runs/cub-vit_b16-toast-lite-seed0"
    results = json.loads((run / "results.json").read_text())
    assert (results["classes"], results["samples"]) == (3, {"train": 9, "val": 3, "test": 6})
    assert results["test"]["images"] == 6 and 0 < results["test"]["attention_share"]["pass_two"] < 1
    assert json.loads((run / "adapter/adapter_config.json").read_text())["classes"][0] == "001.Grey_Heron"

    Image.new("RGB", (60, 40), "teal").save("img.jpg")
    assert toast("visualize-attention", "img.jpg").code == 0


def test_the_main_job_runs_to_its_end_with_a_small_vit_swapped_in_for_vit_b16(
    birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toast_vit import cards

    monkeypatch.setattr(cards, "VIT_B16", cards._build_card("vit_b16", "test_vit"))
    save_weights("test_vit", birds / "small.safetensors")
    run_the_main_job(birds, "small.safetensors")


@pytest.mark.slow
def test_the_main_job_runs_to_its_end_with_vit_b16_itself(birds: Path) -> None:
    save_weights("vit_base_patch16_224", birds / "random.safetensors")
    run_the_main_job(birds, "random.safetensors")
    results = json.loads((birds / "runs/cub-vit_b16-toast-lite-seed0/results.json").read_text())
    assert results["trained_parameters"] == 891_848 - (200 - 3) * 769  # the paper's Lite, with a head of 3 classes


@pytest.mark.parametrize("dataset", ["nabirds", "flowers", "dogs", "cars", "vtab:kitti"])
def test_every_published_set_has_a_recipe_and_its_first_batch_is_shown(here: Path, dataset: str) -> None:
    from tests.layouts import LAYOUTS

    (here / "data").mkdir()
    LAYOUTS[dataset.partition(":")[0]](here / "data")
    said = toast("tune", "--dataset", dataset, "--backbone", "vit_demo", "--dry-run", "training.batch_size=4")
    assert said.code == 0, said.err
    assert "first batch: image [4, 3, 64, 64]" in said.out


def test_shards_are_pre_tuned_on_with_the_steps_that_were_announced(here: Path) -> None:
    from tests.layouts import shards

    said = toast(
        "pretune", "--backbone", "vit_demo", "--dataset", shards(here), "--output-dir", "run", "--device", "cpu",
        "dataset.classes=3", "training.epochs=1", "training.batch_size=6", "training.accumulate=1",
        "training.warmup_epochs=0", "training.cooldown_epochs=0",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "18 images streamed from 3 shards by 1 reader" in " ".join(said.err.split())
    assert json.loads((here / "run/results.json").read_text())["samples"] == {"train": 18, "val": 6}
    assert (here / "run/artifact/feedback.safetensors").is_file()
