"""How well predicted classes cover the labelled ones: intersection over union by class, and pixel accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from toast_cli.tasks.base import Meter
from toast_cli.tasks.upernet import upsample_logits
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError


def align_logits_with_labels(logits: Tensor, batch: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits `[n, classes, H, W]` and the labels `[n, H, W]` they are held against, float32.

    Where images were resized for the backbone and their labels were not (evaluation), the batch says which `extent` of
    each image is no padding and what `size` its labels have. They then come one by one, the logits at that size.
    """
    if "size" not in batch:
        yield logits.float(), batch["labels"]
        return
    for scores, labels, extent, size in zip(logits, batch["labels"], batch["extent"], batch["size"], strict=True):
        (rows, columns), (height, width) = extent.tolist(), size.tolist()
        yield upsample_logits(scores[None, :, :rows, :columns].float(), (height, width)), labels[None, :height, :width]


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits `[n, classes, H, W]` against labels `[n, H, W]`, summed over pixels."""
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")


class SegmentationMeter(Meter):
    """Counts pixels by labelled and predicted class over a whole split, then divides once.

    The counts are integers, so several processes come to exactly what one would. A class that is neither labelled nor
    predicted anywhere has no IoU (None) and no part in the mean.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        counts = torch.zeros(len(self._classes), len(self._classes), dtype=torch.int64)  # [labelled, predicted]
        super().__init__(counts=counts, loss=0.0, images=0)

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Logits `[B, classes, ...]`, perhaps an auxiliary head's behind them, against `batch["labels"]`."""
        for logits, labels in align_logits_with_labels(outputs[:, : len(self._classes)], batch):
            self.sums["counts"] += multiclass_confusion_matrix(
                logits.argmax(1), labels, len(self._classes), ignore_index=IGNORE_INDEX, validate_args=False
            ).cpu()
            self.sums["loss"] += pixel_loss(logits, labels).item()
            self.sums["images"] += len(labels)

    def result(self) -> dict[str, Any]:
        """`mean_iou`, `pixel_accuracy`, `class_accuracy`, `loss` per pixel, `iou` by class; `images` and `pixels`.

        Raises:
            ToastError: no pixel has a class.
        """
        counts, pixels = self.sums["counts"].double(), int(self.sums["counts"].sum())
        if not pixels:
            raise ToastError(
                "There is nothing to measure on: no pixel of this split has a class.",
                what_to_do="Look at the class maps; 'toast data check' counts images without a labelled pixel.",
                code="task.nothing-to-measure",
            )
        right, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        iou = right / (labelled + predicted - right)  # not a number where both are nothing
        return {
            "mean_iou": float(iou.nanmean()),
            "pixel_accuracy": float(right.sum() / pixels),
            "class_accuracy": float((right / labelled)[labelled > 0].mean()),
            "loss": self.sums["loss"] / pixels,
            "iou": {
                name: None if value != value else value for name, value in zip(self._classes, iou.tolist(), strict=True)
            },
            "images": self.sums["images"],
            "pixels": pixels,
        }
