"""Confusion matrix, metrics per class and calibration of a model's answers to a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_calibration_error,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from toast_cli.training.evaluate import SplitAnswers

CALIBRATION_BINS = 15
"""Number of bins of equal width in which probabilities are compared with accuracies."""


def count_confusions(answers: SplitAnswers) -> csr_array:
    """Return the number of samples (or of pixels) `[labelled, chosen]`, as a sparse matrix."""
    if answers.confusion is not None:
        return csr_array(answers.confusion)
    label, chosen = answers.columns["label"], answers.columns["chosen"]
    counts = csr_array((np.ones(len(label), dtype=np.int64), (label, chosen)), shape=(len(answers.classes),) * 2)
    counts.sum_duplicates()
    return counts


def compute_class_metrics(answers: SplitAnswers) -> list[dict[str, Any]]:
    """Return the counts and metrics of each class, in the order of the classes. An undefined metric is None.

    `support` is the number of samples with this label, `predicted` that of samples for which the class was chosen.
    `mean_probability` is the mean probability of the choice, right or wrong, over the samples with this label.
    """
    label, chosen = (torch.from_numpy(answers.columns[name]) for name in ("label", "chosen"))
    counts, size = count_confusions(answers), len(answers.classes)
    support, predicted = counts.sum(axis=1), counts.sum(axis=0)
    probability = np.bincount(label, weights=answers.columns["probability"], minlength=size)

    def compute(metric: Callable[..., torch.Tensor]) -> np.ndarray:
        return metric(chosen, label, size, average=None, validate_args=False).numpy()

    return _build_rows(
        answers.classes,
        support=support,
        predicted=predicted,
        correct=counts.diagonal(),
        precision=np.where(predicted > 0, compute(multiclass_precision), np.nan),
        recall=np.where(support > 0, compute(multiclass_recall), np.nan),
        f1=np.where(support + predicted > 0, compute(multiclass_f1_score), np.nan),
        mean_probability=_divide(probability, support),
    )


def compute_pixel_class_metrics(answers: SplitAnswers) -> list[dict[str, Any]]:
    """Return the pixels, the intersection over union and the accuracy of each class. An undefined metric is None."""
    counts = count_confusions(answers)
    pixels, predicted, correct = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    return _build_rows(
        answers.classes,
        pixels=pixels,
        predicted=predicted,
        correct=correct,
        iou=_divide(correct, pixels + predicted - correct),
        accuracy=_divide(correct, pixels),
    )


def compute_label_metrics(answers: SplitAnswers) -> list[dict[str, Any]]:
    """Return the counts, the metrics and the threshold of each of several labels. An undefined metric is None."""
    label, chosen = answers.columns["label"], answers.columns["chosen"]
    support, predicted, correct = label.sum(axis=0), chosen.sum(axis=0), (label & chosen).sum(axis=0)
    pairs = zip(answers.columns["probability"].T, label.T, strict=True)
    precisions = [
        float(binary_average_precision(torch.from_numpy(scores.copy()), torch.from_numpy(held.copy()).long()))
        if held.any()
        else np.nan
        for scores, held in pairs
    ]
    return _build_rows(
        answers.classes,
        "label",
        support=support,
        predicted=predicted,
        correct=correct,
        precision=_divide(correct, predicted),
        recall=_divide(correct, support),
        f1=_divide(2 * correct, support + predicted),
        average_precision=np.array(precisions),
        threshold=np.array(answers.thresholds),
    )


def count_label_outcomes(answers: SplitAnswers) -> np.ndarray:
    """Return the samples that have a label and were given it, have it and were not, lack it and were, and neither.

    The counts are those of every label, `[labels, 4]`.
    """
    label, chosen = answers.columns["label"], answers.columns["chosen"]
    return np.stack([(a & b).sum(axis=0) for a in (label, ~label) for b in (chosen, ~chosen)], axis=1)


def iterate_label_outcome_rows(answers: SplitAnswers) -> Iterator[list[Any]]:
    """Yield the rows of a table of the outcomes of each label, with a header."""
    yield ["label", "true_positive", "false_negative", "false_positive", "true_negative"]
    for name, counts in zip(answers.classes, count_label_outcomes(answers).tolist(), strict=True):
        yield [name, *counts]


def compute_number_metrics(answers: SplitAnswers) -> list[dict[str, Any]]:
    """Return the errors of each number, in its unit. R² is None if all samples have the same number.

    `bias` is the mean error, the prediction minus the number.
    """
    label, predicted = (answers.columns[name].astype(np.float64) for name in ("label", "predicted"))
    error, spread = predicted - label, np.square(label - label.mean(axis=0)).sum(axis=0)
    squared = np.square(error)
    r2 = 1 - np.divide(squared.sum(axis=0), spread, out=np.full(len(spread), np.nan), where=spread > 0)
    return _build_rows(
        answers.classes,
        "number",
        mae=np.abs(error).mean(axis=0),
        rmse=np.sqrt(squared.mean(axis=0)),
        r2=r2,
        bias=error.mean(axis=0),
        largest_error=np.abs(error).max(axis=0),
    )


def iterate_confusion_rows(answers: SplitAnswers, most: int) -> Iterator[list[Any]]:
    """Yield the rows of a table of confusions, with a header.

    Up to `most` classes have a row per label and a column per choice; more classes have a row per pair that occurs.
    """
    counts, classes = count_confusions(answers), answers.classes
    if len(classes) <= most:
        yield ["label", *classes]
        for name, row in zip(classes, counts.toarray().tolist(), strict=True):
            yield [name, *row]
        return
    yield ["label", "choice", "count"]
    pairs = counts.tocoo()
    for label, chosen, count in zip(pairs.row.tolist(), pairs.col.tolist(), pairs.data.tolist(), strict=True):
        yield [classes[label], classes[chosen], count]


@dataclass(frozen=True)
class Calibration:
    """Probabilities of the choices against their accuracy, in bins of equal width from 0 to 1.

    `counts` is the number of samples in each bin; `probability` and `accuracy` are means over them, NaN in an empty
    bin. `error` is the expected calibration error: the mean distance of the two over all samples.
    """

    counts: np.ndarray
    probability: np.ndarray
    accuracy: np.ndarray
    error: float


def compute_calibration(answers: SplitAnswers) -> Calibration | None:
    """Return the calibration of the answers; None if they have no probabilities.

    Of several labels, every label of every sample counts, and its "accuracy" is whether the sample has the label.
    """
    probability = answers.columns["probability"].ravel()
    if np.isnan(probability).any():
        return None
    label, chosen = answers.columns["label"], answers.columns["chosen"]
    correct = label.ravel() if answers.target == "labels" else label == chosen
    bins = np.minimum((probability * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)

    def total(weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(bins, weights, CALIBRATION_BINS)

    error = binary_calibration_error(torch.from_numpy(probability), torch.from_numpy(correct).long(), CALIBRATION_BINS)
    return Calibration(total(), _divide(total(probability), total()), _divide(total(correct), total()), float(error))


def _divide(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.divide(values, by, out=np.full(len(by), np.nan), where=by > 0)


def _build_rows(classes: tuple[str, ...], heading: str = "class", /, **columns: np.ndarray) -> list[dict[str, Any]]:
    lists = {name: [None if value != value else value for value in column.tolist()] for name, column in columns.items()}
    return [
        {heading: name, **dict(zip(lists, row, strict=True))}
        for name, *row in zip(classes, *lists.values(), strict=True)
    ]
