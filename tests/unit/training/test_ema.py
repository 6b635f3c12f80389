from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from toast_cli.model.model import Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.training.ema import ExponentialMovingAverage
from toast_cli.training.reporter import Reporter
from toast_cli.training.tune import tune_model
from toast_cli.utils.errors import UsageError

SMALL = {"name": "demo", "train_images": 40, "val_images": 20, "test_images": 20}


def recipe_of(**training: Any) -> Recipe:
    plain = {"epochs": 4, "batch_size": 20, "optimizer": "sgd", "lr": 0.1}
    raw = {
        "backbone": "vit_demo_3",
        "dataset": SMALL,
        "method": "linear",
        "device": "cpu",
        "training": plain | training,
    }
    return build_recipe(raw, {}, origin="a test")


def linear_model() -> Model:
    return build_model(recipe_of(), ("a", "b"))


def test_the_average_moves_towards_the_weights_by_one_minus_its_decay() -> None:
    model = linear_model()
    average = ExponentialMovingAverage(model, decay=0.75)
    before = {name: weight.detach().clone() for name, weight in model.get_trained_parameters().items()}
    with torch.no_grad():
        for weight in model.get_trained_parameters().values():
            weight += 1
    average.update()
    for name, averaged in average.get_tensors().items():
        torch.testing.assert_close(averaged, before[name] + 0.25)


def test_the_model_has_the_averages_weights_only_while_they_are_shown() -> None:
    model = linear_model()
    average = ExponentialMovingAverage(model, decay=0.5)
    weight = next(iter(model.get_trained_parameters().values()))
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 1
    now = weight.detach().clone()
    with average.apply_to_model():
        assert torch.equal(weight, before)
    assert torch.equal(weight, now)


def test_what_is_kept_is_the_average_and_training_goes_on_from_the_weights(tmp_path: Path) -> None:
    folder, _ = tune_model(recipe_of(ema=0.5, epochs=1), tmp_path / "averaged", Reporter())
    plain, _ = tune_model(recipe_of(epochs=1), tmp_path / "plain", Reporter())
    trained = load_file(folder.checkpoints / "last" / "model.safetensors")
    for name, weight in load_file(plain.checkpoints / "last" / "model.safetensors").items():
        assert torch.equal(weight, trained[name])
    kept = load_file(folder.adapter / "adapter_model.safetensors")
    assert any(not torch.equal(kept[name], trained[name]) for name in kept)


def test_a_run_that_stops_getting_better_ends_when_patience_does(tmp_path: Path) -> None:
    said: list[str] = []

    class Hears(Reporter):
        def report_message(self, text: str) -> None:
            said.append(text)

    folder, results = tune_model(recipe_of(lr=1e-12, epochs=9, patience=2), tmp_path / "run", Hears())
    lines = [line for line in folder.metrics.read_text().splitlines() if '"kind": "epoch"' in line]
    assert len(lines) == results["selected_epoch"] + 2 < 9
    assert any("Stopped early" in text for text in said)


def test_patience_needs_something_to_wait_for(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / "train" / name / "0.png")
    raw = {"name": "folder", "path": str(tmp_path / "images"), "val_fraction": 0}
    recipe = build_recipe(
        {"backbone": "vit_demo_3", "dataset": raw, "method": "linear", "training": {"patience": 2}}, {}, origin="a test"
    )
    with pytest.raises(UsageError) as refused:
        tune_model(recipe, tmp_path / "run", Reporter())
    assert refused.value.code == "data.missing-split"
