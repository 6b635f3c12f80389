"""Warnings of what the headline of an evaluation hides: classes without images or right answers, and small splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toast_cli.data.splits import format_class_names, quote_class_name
from toast_cli.tasks.auroc import MAX_SCORES
from toast_cli.tasks.class_counts import ClassCounts
from toast_cli.utils.statistics import compute_proportion_interval

HIGH_ACCURACY = 0.5
"""Accuracy from which classes with a low recall are named."""
MAX_SELECTION_WIDTH = 0.1
"""Width of the interval of the validation accuracy beyond which epochs can hardly be told apart."""
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
        listed = _list_classes([f"{quote_class_name(classes[i])} ({support[i]:,} images)" for i in never])
        found.append(f"{split}: never predicted: {listed}.")
    if low and accuracy >= HIGH_ACCURACY:
        low.sort(key=lambda i: (correct[i] / support[i], -support[i]))
        listed = _list_classes([f"{quote_class_name(classes[i])} ({correct[i]:,} of {support[i]:,})" for i in low])
        found.append(f"{split}: the accuracy of {accuracy:.1%} hides classes that are mostly wrong: {listed} right.")
    if images * counts.classes > MAX_SCORES:
        found.append(f"{split}: AUROC may be missing: it is computed up to {MAX_SCORES:,} scores in a process.")
    return found


def describe_small_validation(metrics: Mapping[str, Any] | None, epochs: int) -> list[str]:
    """Return a warning if the validation split is too small to choose one of several epochs by its accuracy."""
    interval = (metrics or {}).get("accuracy_interval")
    if metrics is None or interval is None or epochs < 2 or interval[1] - interval[0] <= MAX_SELECTION_WIDTH:
        return []
    low, high = interval
    return [
        f"val: {metrics['images']:,} images are too few to choose an epoch by: the 95% interval of the accuracy is "
        f"{low:.1%} to {high:.1%}, {100 * (high - low):.0f} points wide. Set dataset.val_fraction higher, or "
        "task.select=loss, which is less noisy."
    ]


def _list_classes(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _them(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"
