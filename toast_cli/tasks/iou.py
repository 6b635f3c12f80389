"""Segmentation metrics: intersection over union by class, and pixel accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from toast_cli.tasks.base import Meter
from toast_cli.tasks.upernet import upsample_logits
from toast_cli.utils.constants import IGNORE_INDEX, NOTHING_TO_MEASURE
from toast_cli.utils.errors import ToastError


def align_logits_with_labels(logits: Tensor, batch: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits `[n, classes, H, W]` in float32 and the labels `[n, H, W]` at the same size.

    In evaluation, images are resized and labels are not. The batch then has the `extent` of each image without padding
    and the `size` of its labels, and images are yielded one by one with logits at the size of the labels.
    """
    if "size" not in batch:
        yield logits.float(), batch["labels"]
        return
    for scores, labels, extent, size in zip(logits, batch["labels"], batch["extent"], batch["size"], strict=True):
        (rows, columns), (height, width) = extent.tolist(), size.tolist()
        yield upsample_logits(scores[None, :, :rows, :columns].float(), (height, width)), labels[None, :height, :width]


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of logits `[n, classes, H, W]` and labels `[n, H, W]`, summed over pixels."""
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")


class SegmentationMeter(Meter):
    """Confusion matrix over a whole split, from which the metrics are computed.

    The counts are integers, so several processes give exactly the result of one. A class that is neither labelled nor
    predicted has no IoU (None) and is excluded from the mean.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        counts = torch.zeros(len(self._classes), len(self._classes), dtype=torch.int64)  # [labelled, predicted]
        super().__init__(counts=counts, loss=0.0, images=0)

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add logits `[B, classes, ...]`, which auxiliary logits may follow, with labels `batch["labels"]`."""
        for logits, labels in align_logits_with_labels(outputs[:, : len(self._classes)], batch):
            self.sums["counts"] += multiclass_confusion_matrix(
                logits.argmax(1), labels, len(self._classes), ignore_index=IGNORE_INDEX, validate_args=False
            ).cpu()
            self.sums["loss"] += pixel_loss(logits, labels).item()
            self.sums["images"] += len(labels)

    def get_confusion(self) -> Tensor:
        """Return the counts of pixels `[labelled, predicted]` so far."""
        return self.sums["counts"]

    def result(self) -> dict[str, Any]:
        """Return `mean_iou`, `pixel_accuracy`, `class_accuracy`, `loss` per pixel, `iou` by class, `images`, `pixels`.

        Raises:
            ToastError: No pixel has a class.
        """
        counts, pixels = self.sums["counts"].double(), int(self.sums["counts"].sum())
        if not pixels:
            raise ToastError(
                "There is nothing to measure: no pixel of this split has a class.",
                what_to_do="Check the class maps. 'toast data check' counts images without a labelled pixel.",
                code=NOTHING_TO_MEASURE,
            )
        right, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        iou = right / (labelled + predicted - right)  # NaN for classes that are neither labelled nor predicted
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
