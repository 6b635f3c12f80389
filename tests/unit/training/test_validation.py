"""How often a run validates, and what it measures then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.training.reporter import Reporter
from toast_cli.training.tune import tune_model


def recipe_of(**training: Any) -> Recipe:
    raw = {
        "backbone": "vit_demo_3",
        "dataset": {"name": "demo", "train_images": 10, "val_images": 10, "test_images": 5},
        "method": "linear",
        "device": "cpu",
        "training": {"epochs": 5, "batch_size": 10, **training},
    }
    return build_recipe(raw, {}, origin="a test")


def validations(path: Path, **training: Any) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """The validation metrics of a tiny run by epoch, and its results."""
    _, results = tune_model(recipe_of(**training), path, Reporter())
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert len(epochs) == 5
    return {line["epoch"]: line["validation"] for line in epochs if "validation" in line}, results


def test_every_epoch_is_validated_unless_told_otherwise(tmp_path: Path) -> None:
    assert list(validations(tmp_path / "run")[0]) == [1, 2, 3, 4, 5]


def test_every_so_many_epochs_and_the_last_are_validated_and_one_of_them_is_kept(tmp_path: Path) -> None:
    found, results = validations(tmp_path / "run", validate_every=2)
    assert list(found) == [2, 4, 5]
    assert results["validation"] == found[results["selected_epoch"]]


def test_attention_is_measured_at_validation_where_asked(tmp_path: Path) -> None:
    found, results = validations(tmp_path / "run", validate_every=5, validate_attention=True)
    assert 0 < found[5]["attention_share"]["pass_one"] < 1
    assert "attention_share" not in validations(tmp_path / "plain", validate_every=5)[0][5]
    assert results["validation"]["attention_share"] == found[5]["attention_share"]


class TestMaxSteps:
    def test_training_ends_in_the_middle_of_an_epoch_and_that_epoch_is_validated_and_kept(self, tmp_path: Path) -> None:
        _, results = tune_model(recipe_of(epochs=5, batch_size=2, max_steps=7), tmp_path / "run", Reporter())
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        epochs = [line for line in lines if line["kind"] == "epoch"]
        assert [(line["epoch"], line["step"]) for line in epochs] == [(1, 5), (2, 7)]
        assert "validation" in epochs[-1] and results["selected_epoch"] in (1, 2)

    def test_the_schedule_is_that_of_the_whole_run(self, tmp_path: Path) -> None:
        def rates(path: Path, **training: Any) -> list[float]:
            tune_model(recipe_of(epochs=4, batch_size=5, log_every=1, **training), path, Reporter())
            lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
            return [line["lr"] for line in lines if line["kind"] == "step"]

        whole = rates(tmp_path / "whole")
        assert rates(tmp_path / "part", max_steps=3) == whole[:3] and len(whole) == 8

    def test_a_run_interrupted_in_its_last_validation_is_validated_when_resumed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        recipe = recipe_of(epochs=2, batch_size=5, max_steps=1)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("toast_cli.training.loop.evaluate_model", interrupted)
            tune_model(recipe, tmp_path / "run", Reporter())
        _, results = tune_model(recipe, tmp_path / "run", Reporter(), resume=True)
        assert results["validation"] is not None and results["selected_epoch"] == 1


def test_patience_counts_from_the_first_validation_and_a_run_ends_on_a_validated_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.5, 0.4, 0.3, 0.2])

    def evaluate(*_: Any, **__: Any) -> dict[str, Any]:
        return {"accuracy": next(accuracies), "loss": 1.0, "images": 10}

    monkeypatch.setattr("toast_cli.training.loop.evaluate_model", evaluate)
    _, results = tune_model(recipe_of(epochs=9, validate_every=2, patience=3), tmp_path / "run", Reporter())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [line["epoch"] for line in lines if line["kind"] == "epoch"]
    assert epochs == [1, 2, 3, 4, 5, 6] and results["selected_epoch"] == 2
