"""The metrics of classification are those of scikit-learn and of formulas written out, also over two processes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from sklearn import metrics as reference
from torch import Tensor, nn

from tests.forks import fork, two_of_a_group
from toast_cli.tasks.auroc import MacroAUROC
from toast_cli.tasks.class_counts import ClassCounts
from toast_cli.tasks.classification import Classification, ClassificationOptions
from toast_cli.tasks.classification_meter import ClassificationMeter
from toast_cli.training.distributed.collectives import merge_across_processes
from toast_cli.training.evaluate import RegisteredMetrics
from toast_cli.utils.constants import IGNORE_INDEX

CLASSES = 7


def random_answers(images: int = 600, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Logits that are often right, and labels without the last class; probabilities tie, as rounding makes them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes - 1, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += 1
    logits[:, 2] -= 9  # never predicted
    return (2 * logits).round() / 2, labels


def measure(logits: Tensor, labels: Tensor, batch: int = 64) -> tuple[ClassificationMeter, MacroAUROC]:
    meter, auroc = ClassificationMeter(logits.shape[1]), MacroAUROC(logits.shape[1])
    for start in range(0, len(labels), batch):
        part = slice(start, start + batch)
        meter.add(logits[part], {"label": labels[part]})
        auroc.update(logits[part], labels[part])
    return meter, auroc


def compute_reference(logits: Tensor, labels: Tensor) -> dict[str, float]:
    predicted, probabilities = logits.argmax(1).numpy(), logits.softmax(1)
    known = labels.numpy()
    found = {
        "accuracy": reference.accuracy_score(known, predicted),
        "top5_accuracy": reference.top_k_accuracy_score(known, logits, k=5, labels=range(CLASSES)),
    }
    occurring = sorted({*known.tolist(), *predicted.tolist()})
    recall = reference.recall_score(known, predicted, labels=sorted(set(known.tolist())), average="macro")
    found["class_accuracy"] = recall
    for average in ("macro", "weighted"):
        values = reference.precision_recall_fscore_support(
            known, predicted, labels=occurring, average=average, zero_division=0
        )
        found |= {
            f"{average}_{name}": value for name, value in zip(("precision", "recall", "f1"), values, strict=False)
        }
    areas = [
        reference.roc_auc_score(known == label, probabilities[:, label])
        for label in range(CLASSES)
        if (known == label).any()
    ]
    return {**found, "auroc": float(np.mean(areas))}


def test_every_metric_is_that_of_scikit_learn() -> None:
    logits, labels = random_answers()
    expected = compute_reference(logits, labels)
    meter, auroc = measure(logits, labels)
    assert float(auroc.compute()) == pytest.approx(expected.pop("auroc"), abs=1e-9)
    found = meter.result()
    # Logits tie here, and which of several equal ones are among the first five is not defined.
    exact, _ = measure(logits + torch.linspace(0, 1e-3, CLASSES), labels)
    top = reference.top_k_accuracy_score(labels, logits + torch.linspace(0, 1e-3, CLASSES), k=5, labels=range(CLASSES))
    assert exact.result()["top5_accuracy"] == pytest.approx(top, abs=1e-9)
    del expected["top5_accuracy"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    low, high = found["accuracy_interval"]
    assert low < found["accuracy"] < high and found["images"] == len(labels)
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))


def test_the_calibration_error_is_its_formula() -> None:
    logits, labels = random_answers()
    logits[:40] *= 100  # probabilities of exactly 1 belong to the last bin
    probability, predicted = logits.softmax(1).max(1)
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = (probability >= low) & ((probability < high) | (number == 14))
        if inside.any():
            gap = (predicted == labels)[inside].double().mean() - probability[inside].double().mean()
            expected += float(inside.double().mean() * gap.abs())
    assert expected > 0.05
    assert measure(logits, labels)[0].result()["calibration_error"] == pytest.approx(expected, abs=1e-9)


def test_counts_by_class_are_those_of_the_confusion_matrix() -> None:
    logits, labels = random_answers()
    counts = measure(logits, labels)[0].class_counts()
    matrix = reference.confusion_matrix(labels, logits.argmax(1), labels=range(CLASSES))
    assert counts.to_dense().tolist() == matrix.tolist()
    assert counts.support.tolist() == matrix.sum(1).tolist()
    assert counts.predicted.tolist() == matrix.sum(0).tolist()
    assert counts.correct.tolist() == matrix.diagonal().tolist()
    by_class = reference.precision_recall_fscore_support(
        labels, logits.argmax(1), labels=range(CLASSES), zero_division=0
    )
    for own, expected in zip((counts.precision, counts.recall, counts.f1), by_class, strict=False):
        assert own.tolist() == pytest.approx(expected.tolist(), abs=1e-9)
    again = ClassCounts.from_dict(json.loads(json.dumps(counts.to_dict())))
    assert torch.equal(again.confusion, counts.confusion)


def test_ten_thousand_classes_need_no_matrix() -> None:
    meter = ClassificationMeter(10_000)
    logits = torch.zeros(6, 10_000)
    logits[:, 9_999] = 1
    meter.add(logits, {"label": torch.tensor([9_999, 9_999, 3, 4, 4, IGNORE_INDEX])})
    counts = meter.class_counts()
    assert counts.confusion.T.tolist() == [[3, 9_999, 1], [4, 9_999, 2], [9_999, 9_999, 2]]
    assert meter.result()["accuracy"] == 2 / 5


def test_what_is_not_defined_is_left_out() -> None:
    logits, labels = random_answers()
    objective = Classification(nn.Identity(), CLASSES, ClassificationOptions())
    objective.metrics = {"auroc": lambda: MacroAUROC(CLASSES)}
    registered = RegisteredMetrics(objective, torch.device("cpu"))
    assert registered.result() == {}
    registered.add(logits[labels == 1], {"label": labels[labels == 1]})
    assert registered.result() == {}, "one class has nothing to be told from"
    registered.add(logits, {"label": labels})
    assert 0.5 < registered.result()["auroc"] < 1
    assert "top5_accuracy" not in measure(logits[:, :5], labels.clamp_max(4))[0].result()


def test_more_scores_than_the_bound_have_no_area(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = random_answers()
    monkeypatch.setattr("toast_cli.tasks.auroc.MAX_SCORES", logits.numel())
    assert not measure(logits, labels)[1].compute().isnan()
    monkeypatch.setattr("toast_cli.tasks.auroc.MAX_SCORES", logits.numel() - 1)
    assert measure(logits, labels)[1].compute().isnan()


def measure_in_process(environment: dict[str, str], out: Path) -> None:
    """Measure this process's share: two thirds of the images for the first, the rest for the second."""
    os.environ.update(environment)
    state = PartialState(cpu=True)
    logits, labels = random_answers()
    part = slice(0, 400) if state.process_index == 0 else slice(400, None)
    meter, auroc = measure(logits[part], labels[part], batch=33)
    found: dict[str, Any] = {**merge_across_processes(meter).result(), "auroc": float(auroc.compute())}
    (out / f"{state.process_index}.json").write_text(json.dumps(found))
    state.destroy_process_group()


def test_two_processes_measure_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = random_answers()
    meter, auroc = measure(logits, labels)
    processes = [fork(measure_in_process, shared, tmp_path) for shared in two_of_a_group()]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    expected = {**meter.result(), "auroc": float(auroc.compute())}
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found.pop("loss") == pytest.approx(expected["loss"], rel=1e-6), "summed in float32"
        assert found.pop("accuracy_interval") == pytest.approx(meter.result()["accuracy_interval"])
        assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-9)
