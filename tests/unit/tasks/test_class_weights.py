"""Unbalanced classes: weighted means and focal losses against torch's own, and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.tasks.classification import Classification, ClassificationOptions, build_classification
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import prepare_session
from toast_cli.training.tune import tune_model
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError

CLASSES = ("a", "b", "c", "never")
LABELS = torch.tensor([0, 2, 0, 0, 1, 0, 2])


class Width:
    head_width = 4


def objective_of(**options: Any) -> Classification:
    objective = build_classification(ClassificationOptions(**options), Width(), CLASSES)  # type: ignore[arg-type]
    objective.fit_to_labels(LABELS.tolist())
    return objective


def outputs() -> torch.Tensor:
    return torch.randn(len(LABELS), len(CLASSES), generator=torch.Generator().manual_seed(1)) * 3


def mean_loss(objective: Classification, parts: list[slice]) -> torch.Tensor:
    """The loss of a step as the training loop computes it, over several batches."""
    batches = [{"label": LABELS[part]} for part in parts]
    losses = [objective.loss(outputs()[part], batch) for part, batch in zip(parts, batches, strict=True)]
    return sum(losses) / sum(objective.sum_weights(batch) for batch in batches)  # type: ignore[return-value]


def test_balanced_weights_are_inverse_to_the_number_of_images_and_have_mean_one() -> None:
    weights = objective_of(class_weights="balanced").weights
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([7 / 12, 7 / 3, 7 / 6, 0.0]))
    assert weights[LABELS].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, "balanced", {"c": 5.0, "b": 0.5}])
def test_the_mean_over_the_batches_of_a_step_is_that_of_torch(weights: Any, smoothing: float) -> None:
    objective = objective_of(class_weights=weights, label_smoothing=smoothing)
    expected = F.cross_entropy(outputs(), LABELS, weight=objective.weights, label_smoothing=smoothing)
    assert (objective.weights is None) == (weights is None)
    for parts in ([slice(0, 7)], [slice(0, 2), slice(2, 3), slice(3, 7)]):
        torch.testing.assert_close(mean_loss(objective, parts), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_focal_loss_without_gamma_is_cross_entropy_and_with_it_as_written_in_the_paper(smoothing: float) -> None:
    plain = objective_of(loss="focal", focal_gamma=0, class_weights="balanced", label_smoothing=smoothing)
    cross_entropy = objective_of(class_weights="balanced", label_smoothing=smoothing)
    torch.testing.assert_close(mean_loss(plain, [slice(0, 7)]), mean_loss(cross_entropy, [slice(0, 7)]))
    focal = objective_of(loss="focal", focal_gamma=1.5)
    shares = outputs().softmax(-1)
    expected = sum(-((1 - p[y]) ** 1.5) * p[y].log() for p, y in zip(shares, LABELS, strict=True))
    torch.testing.assert_close(focal.loss(outputs(), {"label": LABELS}), expected)


def test_a_focal_loss_of_a_certain_image_has_a_finite_gradient() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0, 0.0]], requires_grad=True)
    objective_of(loss="focal", focal_gamma=0.5).loss(logits, {"label": torch.tensor([0])}).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"loss": "focal"}])
def test_mixed_images_weigh_as_much_as_their_labels(options: dict[str, Any]) -> None:
    objective = objective_of(class_weights="balanced", mixup=1.0, **options)
    batch = objective.apply_mixup({"image": torch.rand(7, 3, 4, 4), "label": LABELS})
    assert objective.weights is not None
    assert (batch["target"] * objective.weights).sum().item() == pytest.approx(objective.sum_weights(batch), rel=1e-5)
    only = {"label": LABELS, "target": F.one_hot(LABELS, 4).float()}
    torch.testing.assert_close(objective.loss(outputs(), only), objective.loss(outputs(), {"label": LABELS}))


@pytest.mark.parametrize("options", [{}, {"loss": "focal"}])
def test_an_ignored_image_has_no_weight(options: dict[str, Any]) -> None:
    objective = objective_of(class_weights="balanced", **options)
    ignored = {"label": torch.tensor([IGNORE_INDEX])}
    assert objective.sum_weights(ignored) == 0 and objective.loss(outputs()[:1], ignored) == 0


def test_a_weight_of_an_unknown_class_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError) as refused:
        objective_of(class_weights={"nevr": 2.0})
    assert refused.value.code == "task.unknown-class" and "Did you mean 'never'?" in refused.value.what_to_do


def recipe_of(dataset: Any = None, task: Any = "classification", **training: Any) -> Recipe:
    raw = {
        "backbone": "vit_demo_3",
        "dataset": dataset or {"name": "demo", "train_images": 14, "val_images": 4, "test_images": 4},
        "method": "linear",
        "task": task,
        "training": {"epochs": 2, "optimizer": "sgd", "lr": 0.1, **training},
    }
    return build_recipe(raw, {}, origin="a test")


def test_neither_the_batches_of_a_step_nor_the_scale_of_the_weights_change_what_is_learned(tmp_path: Path) -> None:
    classes = prepare_session(recipe_of()).data.classes
    weights = {name: (9.0, 0.1)[place] if place < 2 else 1.0 for place, name in enumerate(classes)}
    heads = []
    for name, batch_size, accumulate, scale in (("one", 6, 1, 1), ("several", 2, 3, 1), ("scaled", 6, 1, 100)):
        scaled = {each: weight * scale for each, weight in weights.items()}
        task = {"name": "classification", "class_weights": scaled, "label_smoothing": 0.1}
        recipe = recipe_of(task=task, batch_size=batch_size, accumulate=accumulate, sampler="balanced")
        folder, _ = tune_model(recipe, tmp_path / name, Reporter())
        heads.append(load_file(folder.adapter / "adapter_model.safetensors"))
    for other in heads[1:]:
        for name, weight in heads[0].items():
            torch.testing.assert_close(weight, other[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("task", "training", "code"),
    [
        ({"name": "classification", "class_weights": "balanced"}, {}, "task.unknown-class-counts"),
        ("classification", {"sampler": "balanced"}, "training.unknown-class-counts"),
    ],
)
def test_streams_are_refused_because_their_classes_are_unknown(
    tmp_path: Path, task: Any, training: dict[str, Any], code: str
) -> None:
    from tests.layouts import shards

    pytest.importorskip("datasets")
    shards(tmp_path)
    data = {"name": "shards", "path": str(tmp_path / "shards/train-{0000..0003}.tar"), "classes": 3}
    with pytest.raises(ToastError) as refused:
        prepare_session(recipe_of(data, task, **training))
    assert refused.value.code == code and "streamed" in str(refused.value)


def test_pixels_have_no_classes_to_draw_equally_often() -> None:
    data = {"name": "demo-segmentation", "train_images": 4, "val_images": 2, "test_images": 2}
    with pytest.raises(UsageError, match="belong to pixels"):
        prepare_session(recipe_of(data, "segmentation", sampler="balanced"))
