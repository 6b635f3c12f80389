"""Warnings of what the headline of an evaluation hides: classes, labels and numbers that fail, and small splits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from toast_cli.data.splits import format_class_names, quote_class_name
from toast_cli.tasks.auroc import MAX_SCORES
from toast_cli.tasks.class_counts import ClassCounts
from toast_cli.utils.statistics import compute_mean_margin, compute_proportion_interval

HIGH_ACCURACY = 0.5
"""Accuracy from which classes with a low recall are named."""
MAX_SELECTION_WIDTH = 0.1
"""Width of the interval of the validation accuracy beyond which epochs can hardly be told apart."""
MAX_ERROR_MARGIN = 0.1
"""Half the width of the interval of the mean absolute error, as a share of it, beyond which epochs cannot be told
apart."""
MIN_LABEL_IMAGES = 10
"""Number of validation images that should have a label for an epoch and its threshold to be chosen by."""
MAX_NAMED = 5


def describe_weak_classes(split: str, counts: ClassCounts | None, classes: Sequence[str]) -> list[str]:
    """Return warnings of the classes of a split without images, never predicted, or with a recall far below the rest.

    A recall counts as low if the upper end of its interval is below half of the accuracy.
    """
    if counts is None or not (images := int(counts.support.sum())):
        return []
    support, predicted, correct = (each.tolist() for each in (counts.support, counts.predicted, counts.correct))
    absent = [name for name, count in zip(classes, support, strict=True) if not count]
    never = [i for i, count in enumerate(support) if count and not predicted[i]]
    accuracy = sum(correct) / images
    low = [
        i
        for i, count in enumerate(support)
        if count and predicted[i] and compute_proportion_interval(correct[i], count)[1] < accuracy / 2
    ]
    found = []
    if absent:
        found.append(f"{split}: no image of {format_class_names(absent)}: nothing is measured of {_them(absent)}.")
    if never:
        listed = _list_classes([f"{quote_class_name(classes[i])} ({_count_images(support[i])})" for i in never])
        found.append(f"{split}: never predicted: {listed}.")
    if low and accuracy >= HIGH_ACCURACY:
        low.sort(key=lambda i: (correct[i] / support[i], -support[i]))
        listed = _list_classes([f"{quote_class_name(classes[i])} ({correct[i]:,} of {support[i]:,})" for i in low])
        found.append(f"{split}: the accuracy of {accuracy:.1%} hides classes that are mostly wrong: {listed} right.")
    if images * counts.classes > MAX_SCORES:
        found.append(f"{split}: AUROC may be missing: it is computed up to {MAX_SCORES:,} scores in a process.")
    return found


def describe_weak_answers(split: str, metrics: Mapping[str, Any] | None) -> list[str]:
    """Return warnings of labels without images or right answers, and of numbers that are not predicted at all.

    `metrics` are those of several labels or of numbers; others give no warnings.
    """
    metrics, found = metrics or {}, list[str]()
    if (f1 := metrics.get("label_f1")) is not None:
        absent = [name for name, value in f1.items() if value is None]
        zero = [quote_class_name(name) for name, value in f1.items() if value == 0]
        if absent:
            named = format_class_names(absent, target="labels")
            found.append(f"{split}: no image has {named}: nothing is measured of {_them(absent)}.")
        if zero:
            found.append(f"{split}: F1 is 0, as no image that has the label was given it: {_list_classes(zero)}.")
    r2 = metrics.get("number_r2") or {"": metrics.get("r2")}
    useless = [
        f"R² is {value:.3g}" + f" for {quote_class_name(name)}" * bool(name)
        for name, value in r2.items()
        if value is not None and value <= 0
    ]
    if useless:
        found.append(f"{split}: {_list_classes(useless)}: answering the mean number for every image is as good.")
    return found


def describe_small_validation(metrics: Mapping[str, Any] | None, epochs: int) -> list[str]:
    """Return a warning if the validation split is too small to choose one of several epochs by accuracy or error."""
    interval = (metrics or {}).get("accuracy_interval")
    if metrics is not None and "mae" in metrics:
        return _describe_small_number_validation(metrics, epochs)
    if metrics is None or interval is None or epochs < 2 or interval[1] - interval[0] <= MAX_SELECTION_WIDTH:
        return []
    low, high = interval
    return [
        f"val: {_count_images(metrics['images'])} are too few to choose an epoch by: the 95% interval of the accuracy "
        f"is {low:.1%} to {high:.1%}, {100 * (high - low):.0f} points wide. Set dataset.val_fraction higher, or "
        "task.select=loss, which is less noisy."
    ]


def _describe_small_number_validation(metrics: Mapping[str, Any], epochs: int) -> list[str]:
    """Return a warning if the interval of the mean absolute error is too wide to choose one of several epochs by."""
    mae = metrics.get("number_mae") or {"": metrics["mae"]}
    rmse = metrics.get("number_rmse") or {"": metrics["rmse"]}
    margins = {
        name: compute_mean_margin(math.sqrt(max(rmse[name] ** 2 - mae[name] ** 2, 0.0)), metrics["images"])
        for name in mae
    }
    wide = {name: margin for name, margin in margins.items() if margin > MAX_ERROR_MARGIN * mae[name]}
    if epochs < 2 or not wide:
        return []
    name = max(wide, key=lambda each: wide[each] / mae[each])
    of = f" of {quote_class_name(name)}" * bool(name)
    return [
        f"val: {_count_images(metrics['images'])} are too few to choose an epoch by: the mean absolute error{of} is "
        f"{mae[name]:.4g} ± {wide[name]:.2g}. Set dataset.val_fraction higher."
    ]


def describe_small_label_validation(
    labels: Sequence[Any], classes: Sequence[str], epochs: int, thresholds: bool
) -> list[str]:
    """Return a warning if few validation images have some of several labels, and they choose an epoch or thresholds.

    Args:
        labels: The indices of the labels of each validation image.
        classes: The names of the labels.
        epochs: The number of epochs that were compared.
        thresholds: Whether thresholds were chosen.
    """
    counts = Counter(label for each in labels for label in each)
    few = [
        f"{quote_class_name(name)} ({counts[place]:,})"
        for place, name in enumerate(classes)
        if counts[place] < MIN_LABEL_IMAGES
    ]
    chosen = [*(["an epoch"] if epochs > 1 else []), *(["thresholds"] if thresholds else [])]
    if not few or not chosen:
        return []
    remedy = ", or task.thresholds=half" if thresholds else ""
    return [
        f"val: {_count_images(len(labels))} are too few to choose {' and '.join(chosen)} by: fewer than "
        f"{MIN_LABEL_IMAGES} have {_list_classes(few)}. Set dataset.val_fraction higher{remedy}."
    ]


def _count_images(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"


def _list_classes(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _them(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"
