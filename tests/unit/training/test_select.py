"""`task.select` chooses the metric that selects the best epoch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from toast_cli import registry
from toast_cli.model.model import build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.tasks.base import EpochSelection, Metric
from toast_cli.training.reporter import Reporter
from toast_cli.training.tune import tune_model
from toast_cli.utils.errors import ToastError, UsageError

EPOCHS: list[dict[str, Any]] = [
    {"accuracy": 0.9, "macro_f1": 0.5, "calibration_error": 0.2, "made_up": 0.3, "loss": 0.7, "images": 9},
    {"accuracy": 0.8, "macro_f1": 0.7, "calibration_error": 0.3, "made_up": 0.2, "loss": 0.8, "images": 9},
    {"accuracy": 0.7, "macro_f1": 0.6, "calibration_error": 0.1, "made_up": 0.4, "loss": 0.6, "images": 9},
]


def recipe_of(classes: str = "demo", **task: Any) -> Recipe:
    raw = {
        "backbone": "vit_demo_3",
        "dataset": {"name": classes, "train_images": 5, "val_images": 5, "test_images": 5},
        "method": "linear",
        "task": task,
        "training": {"epochs": 3, "batch_size": 5, "optimizer": "sgd"},
    }
    return build_recipe(raw, {}, origin="a test")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered metric of the logits of which lower is better."""
    load_all = registry.load_all
    metric = Metric("made up", lambda classes: SimpleNamespace(to=lambda device: None), higher=False)
    monkeypatch.setattr(registry, "load_all", lambda group: {**load_all(group), "made_up": metric})


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("select", "best"), [(None, 1), ("macro_f1", 2), ("calibration_error", 3), ("loss", 3), ("made_up", 2)]
)
def test_the_epoch_with_the_best_value_of_the_metric_is_kept(
    select: str | None, best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter(EPOCHS)
    monkeypatch.setattr("toast_cli.training.loop.evaluate_model", lambda *_, **__: next(values))
    recipe = recipe_of(**({} if select is None else {"select": select})).model_copy(update={"test": False})
    _, results = tune_model(recipe, tmp_path / "run", Reporter())
    assert results["selected_epoch"] == best and results["selected_by"] == (select or "accuracy")


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="Did you mean 'macro_f1'") as refused:
        recipe_of(select="f1_macro")
    assert refused.value.code == "recipe.unknown-choice"
    for select in ("auc", "bright"):  # one of attention maps, and one that is not installed
        with pytest.raises(UsageError):
            recipe_of(select=select)
    assert recipe_of("demo-segmentation", select="pixel_accuracy").task.select == "pixel_accuracy"  # type: ignore[attr-defined]
    with pytest.raises(UsageError):
        recipe_of("demo-segmentation", select="auroc")


def test_a_metric_that_the_data_does_not_define_is_refused() -> None:
    recipe = recipe_of(select="top5_accuracy")
    with pytest.raises(UsageError) as refused:
        build_model(recipe, ("a", "b", "c", "d", "e"))
    assert refused.value.code == "task.undefined-metric"
    assert build_model(recipe, tuple("abcdef")).objective.score({"top5_accuracy": 0.5}) == 0.5
    for metrics in ({"accuracy": 0.5}, {"auroc": float("nan")}):
        with pytest.raises(ToastError) as undefined:
            EpochSelection("auroc").score(metrics)
        assert undefined.value.code == "task.undefined-metric"
