"""Several labels per image and numbers: metrics, thresholds, heads, adapters and what reads the answers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import toast_cli
from tests.layouts import photograph
from toast_cli.api.predictions import LabelsPrediction, NumberPrediction
from toast_cli.api.steered import Steered
from toast_cli.cli.commands.visualize_images import require_class
from toast_cli.data.base import DataSet
from toast_cli.model.model import Model, build_model
from toast_cli.model.recipe_data import choose_task, require_fitting_task
from toast_cli.recipe.parse import build_recipe
from toast_cli.storage.adapter import build_adapter_config, save_adapter_folder
from toast_cli.tasks.multilabel import choose_threshold
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.visualize.view import AttentionViewer, Sample, compute_image_view

NAMES = ("indoor", "cute", "räre")


def recipe_of(task: str, method: str = "linear", backbone: Any = "vit_demo_3", **options: Any) -> Any:
    raw = {"backbone": backbone, "dataset": "demo", "method": method, "task": {"name": task, **options}}
    return build_recipe(raw, {}, origin="a test")


def model_of(task: str, classes: tuple[str, ...], **fields: Any) -> Model:
    return build_model(recipe_of(task, **fields), classes).eval()


def write_out_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the sum of precision times the rise of recall, over thresholds from high to low."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        given = scores >= threshold
        hits = float((given & labels).sum())
        total += hits / given.sum() * (hits / labels.sum() - recall)
        recall = hits / labels.sum()
    return total


@pytest.mark.parametrize("count", [1, 3])
def test_average_precision_and_f1_are_as_written_out_also_from_two_processes(count: int) -> None:
    objective: Any = model_of("multilabel", NAMES[:count]).objective
    objective.thresholds.copy_(torch.tensor([0.4, 0.5, 0.7])[:count])
    rng = torch.Generator().manual_seed(0)
    outputs = torch.randn(60, count, generator=rng).round(decimals=1)  # with ties
    labels = (torch.rand(60, count, generator=rng) < torch.tensor([0.5, 0.3, 0.1])[:count]).float()
    labels[7] = float("nan")
    first, second = objective.evaluation_meter(), objective.evaluation_meter()
    for meter, rows in ((first, slice(0, 23)), (second, slice(23, 60))):
        meter.add(outputs[rows], {"label": labels[rows]})
    first, second = pickle.loads(pickle.dumps((first, second)))
    first.merge(second)
    found = first.result()
    known = ~labels[:, 0].isnan()
    scores, truth = outputs[known].sigmoid().numpy(), labels[known].bool().numpy()
    precision = [write_out_average_precision(scores[:, j], truth[:, j]) for j in range(count)]
    given = scores >= objective.thresholds.numpy()
    f1 = [2 * (given & truth)[:, j].sum() / (given[:, j].sum() + truth[:, j].sum()) for j in range(count)]
    assert found["mean_ap"] == pytest.approx(np.mean(precision), abs=1e-6)
    assert found["micro_ap"] == pytest.approx(write_out_average_precision(scores.ravel(), truth.ravel()), abs=1e-6)
    assert list(found["label_ap"].values()) == pytest.approx(precision, abs=1e-6)
    assert list(found["label_f1"].values()) == pytest.approx(f1, abs=1e-6)
    assert found["f1"] == pytest.approx(np.mean(f1), abs=1e-6)
    assert found["micro_f1"] == pytest.approx(2 * (given & truth).sum() / (given.sum() + truth.sum()), abs=1e-6)
    assert found["images"] == 59


def test_weighted_labels_count_as_torch_weighs_them() -> None:
    rows = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]], dtype=torch.float32)
    outputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    for given, expected in (("balanced", [1 / 3, 1.0, 1.0]), ({"ra\u0308re": 5.0}, [1.0, 1.0, 5.0])):
        objective = model_of("multilabel", NAMES, class_weights=given).objective
        objective.fit_to_labels([*rows.tolist(), [float("nan")] * 3])
        theirs = F.binary_cross_entropy_with_logits(outputs, rows, pos_weight=torch.tensor(expected))
        torch.testing.assert_close(objective.loss(outputs, {"label": rows}) / 4, theirs)
    with pytest.raises(UsageError, match="no class of that name"):
        model_of("multilabel", NAMES, class_weights={"gone": 2.0})
    with pytest.raises(UsageError, match="streamed"):
        model_of("multilabel", NAMES, class_weights="balanced").objective.fit_to_labels(None)


def test_a_threshold_has_the_largest_f1_of_all() -> None:
    rng = torch.Generator().manual_seed(1)
    for _ in range(20):
        scores, labels = (
            torch.rand(30, generator=rng).round(decimals=2) * 0.9 + 0.05,
            torch.rand(30, generator=rng) < 0.3,
        )

        def f1(threshold: float, scores: Any = scores, labels: Any = labels) -> float:
            given = scores >= threshold
            return float(2 * (given & labels).sum() / (given.sum() + labels.sum()))

        chosen = choose_threshold(scores, labels)
        assert chosen is not None and f1(chosen) == pytest.approx(max(map(f1, scores.tolist())))
        assert chosen not in scores.tolist(), "rounding could turn an answer"
    assert choose_threshold(torch.rand(3), torch.zeros(3, dtype=torch.bool)) is None


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_errors_of_numbers_are_as_written_out_also_from_two_processes(loss: str) -> None:
    objective: Any = model_of("regression", ("age", "year"), loss=loss).objective
    rng = np.random.default_rng(0)
    truth = rng.normal([40, 1990], [12, 3], (50, 2)).astype(np.float32)
    answers = truth + rng.normal(0, [5, 1], (50, 2)).astype(np.float32)
    objective.fit_to_labels([tuple(row) for row in truth.tolist()])
    np.testing.assert_allclose(objective.head.std, truth.std(0), rtol=1e-5)
    labels = torch.tensor(np.concatenate([truth, [[np.nan, np.nan]]])).float()
    outputs = torch.tensor(np.concatenate([answers, [[0, 0]]])).float()
    first, second = objective.evaluation_meter(), objective.evaluation_meter()
    first.add(outputs[:20], {"label": labels[:20]})
    second.add(outputs[20:], {"label": labels[20:]})
    first, second = pickle.loads(pickle.dumps((first, second)))
    first.merge(second)
    found, errors = first.result(), (answers - truth).astype(np.float64)
    mae, rmse = abs(errors).mean(0), np.sqrt((errors**2).mean(0))
    r2 = 1 - (errors**2).sum(0) / ((truth - truth.mean(0, dtype=np.float64)) ** 2).sum(0)
    for name, expected in (("mae", mae), ("rmse", rmse), ("r2", r2)):
        assert found[name] == pytest.approx(expected.mean(), rel=1e-5)
        assert list(found[f"number_{name}"].values()) == pytest.approx(expected.tolist(), rel=1e-5)
    standard = errors / truth.std(0)
    huber = np.where(abs(standard) <= 1, standard**2 / 2, abs(standard) - 0.5)
    assert found["loss"] == pytest.approx((standard**2 if loss == "mse" else huber).mean(), rel=1e-4)
    one = objective.evaluation_meter()
    one.add(outputs[:1], {"label": labels[:1]})
    assert one.result()["r2"] is None


@pytest.mark.parametrize("method", ["toast", "toast-lite", "linear", "lora", "vpt", "full"])
@pytest.mark.parametrize(("task", "width"), [("multilabel", 3), ("regression", 1)])
def test_every_method_learns_and_its_adapter_answers_alike(task: str, width: int, method: str, tmp_path: Path) -> None:
    classes = NAMES[:width] if task == "multilabel" else ("age",)
    recipe = recipe_of(task, method)
    model = build_model(recipe, classes)
    objective: Any = model.objective
    images = torch.randn(4, 3, *model.backbone.require_preprocessing().image_size)
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]]) if width == 3 else torch.arange(4.0)[:, None]
    batch = {"image": images, "label": 10 + labels if task == "regression" else labels}
    objective.fit_to_labels([tuple(row) for row in batch["label"].tolist()])
    optimizer = torch.optim.SGD(model.get_trained_parameters().values(), lr=0.001)
    losses = []
    for _ in range(4):
        loss = objective.loss(model(images), batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    model.eval()
    meter = objective.evaluation_meter()
    with torch.no_grad():
        meter.add(model(images), batch)
        objective.calibrate(meter)
        config = build_adapter_config(model, recipe, classes)
        save_adapter_folder(
            tmp_path / "run", model.get_trained_parameters(), model.get_frozen_additions(), config, "card"
        )
        pictures = [photograph(number) for number in range(3)]
        expected, found = (
            each.predict(pictures) for each in (Steered(model, classes), toast_cli.load(tmp_path / "run"))
        )
    assert found == expected
    if task == "regression":
        assert all(isinstance(each, NumberPrediction) and 5 < each.value < 20 for each in found)
    else:
        for each in found:
            assert isinstance(each, LabelsPrediction)
            thresholds = dict(zip(classes, objective.thresholds.tolist(), strict=True))
            likely = dict(zip(classes, each.probabilities.tolist(), strict=True))
            assert each.labels == {name: p for name, p in likely.items() if p >= thresholds[name]}


def test_a_convnext_answers_labels_and_numbers() -> None:
    for task, classes in (("multilabel", NAMES), ("regression", ("age",))):
        model = model_of(task, classes, method="toast", backbone={"name": "convnext:test_convnext", "weights": "none"})
        images = torch.randn(2, 3, *model.backbone.require_preprocessing().image_size)
        assert model.objective.compute_scores(model(images)).shape == (2, len(classes))


def test_figures_show_the_label_that_was_asked_for_and_numbers_in_their_unit() -> None:
    for task, classes in (("multilabel", NAMES), ("regression", ("age",))):
        recipe = recipe_of(task, "toast")
        model = build_model(recipe, classes).eval()
        viewer = AttentionViewer("run", model, recipe.images, classes, recipe=recipe, label=classes[-1])
        view = compute_image_view(viewer, Sample(photograph(1), (0,) if task == "multilabel" else (31.5,), "a.jpg"))
        assert view.last is not None and view.last.label == classes[-1]
        assert (view.last.value is None) is (task == "multilabel")
        with pytest.raises(UsageError):
            require_class([viewer], "outdoor")


def test_a_task_that_does_not_fit_the_labels_is_refused_and_a_default_one_follows_the_data() -> None:
    data = DataSet(NAMES, {}, target="labels")
    for task in ("classification", "regression"):
        with pytest.raises(UsageError) as refused:
            require_fitting_task(model_of(task, NAMES).objective, data, task)
        assert refused.value.code == "task.unfit-data" and "task=multilabel" in refused.value.what_to_do
        assert choose_task(recipe_of(task), data).task.name == task, "a task that was named is kept"
    unnamed = build_recipe({"backbone": "vit_demo_3", "dataset": "demo", "method": "linear"}, {}, origin="a test")
    assert choose_task(unnamed, data).task.name == "multilabel"


def test_a_split_without_any_label_has_nothing_to_measure() -> None:
    meter = model_of("multilabel", NAMES).objective.evaluation_meter()
    meter.add(torch.randn(2, 3), {"label": torch.zeros(2, 3)})
    with pytest.raises(ToastError) as refused:
        meter.result()
    assert refused.value.code == "task.nothing-to-measure"
