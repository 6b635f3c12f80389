"""The metrics of classification that counts suffice for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toast_cli.tasks.base import Meter
from toast_cli.tasks.class_counts import ClassCounts
from toast_cli.utils.constants import IGNORE_INDEX, NOTHING_TO_MEASURE
from toast_cli.utils.errors import ToastError
from toast_cli.utils.statistics import compute_proportion_interval

TOP = 5
CALIBRATION_BINS = 15
"""Bins of equal width over the probability of the predicted class."""


class ClassificationMeter(Meter):
    """Every metric of classification that counts suffice for, exactly and over any number of images.

    Only pairs of classes that occur are counted. The divisions are in float64 here, where torchmetrics has float32.
    The calibration error keeps sums by bin, where torchmetrics keeps every image.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        super().__init__(
            confusion=Counter(),  # images by label * classes + predicted class
            top=0,
            loss=0.0,
            # Correct predictions and summed probabilities of each bin.
            bins=torch.zeros(2, CALIBRATION_BINS, dtype=torch.float64),
        )

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add logits `[B, classes]` with labels `batch["label"]` `[B]`."""
        labelled = batch["label"] != IGNORE_INDEX
        logits, labels = outputs[labelled].float(), batch["label"][labelled]
        predicted = logits.argmax(-1)
        self.sums["confusion"].update((labels * self._classes + predicted).tolist())
        self.sums["loss"] += F.cross_entropy(logits, labels, reduction="sum").item()
        if self._classes > TOP:
            self.sums["top"] += int((logits.topk(TOP).indices == labels[:, None]).sum())
        probability = logits.softmax(-1).gather(1, predicted[:, None])[:, 0].cpu().double()
        place = (probability * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
        right = (labels == predicted).cpu().double()
        self.sums["bins"].index_add_(1, place, torch.stack([right, probability]))

    def class_counts(self) -> ClassCounts:
        """Return the counts by class and the confusion matrix so far."""
        pairs = sorted(self.sums["confusion"].items())
        codes, counts = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
        return ClassCounts(self._classes, torch.stack([codes // self._classes, codes % self._classes, counts]))

    def result(self) -> dict[str, Any]:
        """Return the metrics (see docs/reference/metrics.md); top-5 accuracy only with more than five classes.

        Raises:
            ToastError: There is no image.
        """
        counts = self.class_counts()
        support, correct = counts.support, int(counts.correct.sum())
        images, seen = int(support.sum()), support > 0
        if not images:
            raise ToastError(
                "There is nothing to measure: no image of this split could be read.",
                what_to_do="Run 'toast data check' to see what is wrong with each.",
                code=NOTHING_TO_MEASURE,
            )
        occurring, weights = seen | (counts.predicted > 0), support.double() / images
        by_class = {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1}
        right, probability = self.sums["bins"]
        return {
            "accuracy": correct / images,
            "accuracy_interval": list(compute_proportion_interval(correct, images)),
            **({"top5_accuracy": self.sums["top"] / images} if self._classes > TOP else {}),
            "class_accuracy": float(counts.recall[seen].mean()),
            **{f"macro_{name}": float(values[occurring].mean()) for name, values in by_class.items()},
            **{f"weighted_{name}": float((values * weights).sum()) for name, values in by_class.items()},
            "calibration_error": float((right - probability).abs().sum() / images),
            "loss": self.sums["loss"] / images,
            "images": images,
        }
