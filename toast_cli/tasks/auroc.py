"""The exact area under the ROC curve, one class against the rest, from scores on disk."""

from __future__ import annotations

import math
from tempfile import TemporaryFile

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from toast_cli.utils.errors import ToastError

MAX_SCORES = 1_000_000_000
"""Maximum number of probabilities on disk in each process (4 GB). Beyond it, the area is not computed."""
BLOCK_SCORES = 8_000_000
"""Maximum number of probabilities in memory when the area is computed."""


class MacroAUROC:
    """The mean over classes of the area under the ROC curve of a class against the rest (macro AUROC).

    It needs the order of all images by the probability of each class. torchmetrics keeps every score in memory for
    that, or counts them in bins, which is not exact. Here probabilities go to a temporary file in float32, and are
    read and merged over processes in blocks of classes. A class without an image, or of all images, has no area and
    is left out; the result is NaN if no class has one, or if there are more than `MAX_SCORES` probabilities.

    The interface is that of `torchmetrics.Metric`, whose import would take every run as long as that of torch.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._file = TemporaryFile(prefix="toast-scores-")  # noqa: SIM115 (deleted with this object)
        self._rows = 0
        self._complete = True
        self.update_called = False

    def to(self, device: torch.device) -> MacroAUROC:
        """Return this object: its scores are on disk, whatever the device."""
        return self

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add logits `[n, classes]` and labels `[n]`.

        Raises:
            ToastError: The temporary folder is full.
        """
        self.update_called = True
        self._complete = self._complete and (self._rows + len(labels)) * self._classes <= MAX_SCORES
        if not self._complete:
            return
        rows = torch.cat([labels[:, None].float(), scores.float().softmax(-1)], 1)  # floats hold labels to 16 million
        try:
            self._file.write(rows.cpu().numpy().tobytes())
        except OSError as error:
            raise ToastError(
                "The scores of the evaluation cannot be stored, which the AUROC is computed from.",
                str(error),
                "Free some space in the temporary folder, or name another one in TMPDIR.",
                code="task.cannot-store-scores",
            ) from error
        self._rows += len(rows)

    def compute(self) -> Tensor:
        """Return the mean area. This is a collective call."""
        rows = self._open_rows()
        labels = np.concatenate(gather_object([rows[:, 0].astype(np.int64)]))
        areas: list[float] = []
        if all(gather_object([self._complete])):
            width = max(1, BLOCK_SCORES // max(len(labels), 1))
            for start in range(0, self._classes, width):
                own = np.ascontiguousarray(rows[:, 1 + start : 1 + min(start + width, self._classes)].T)
                block = np.concatenate(gather_object([own]), axis=1)  # [classes, images]
                found = (compute_auroc(scores, labels == start + i) for i, scores in enumerate(block))
                areas += [area for area in found if area is not None]
        return torch.tensor(sum(areas) / len(areas) if areas else math.nan, dtype=torch.float64)

    def _open_rows(self) -> np.ndarray:
        """Return the rows of this process, label first, read from the file as needed."""
        shape = (self._rows, self._classes + 1)
        if not self._rows:
            return np.empty(shape, np.float32)
        self._file.flush()
        return np.memmap(self._file, np.float32, "r", shape=shape)


def compute_auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the area under the ROC curve of scores `[n]`; None if all images are positive or none is.

    This is the share of pairs of a positive and a negative image in which the positive one has the larger score, where
    ties count half. Counts are integers, so the result is exact.
    """
    ones, zeros = np.sort(scores[positive]), np.sort(scores[~positive])
    if not len(ones) or not len(zeros):
        return None
    below = np.searchsorted(zeros, ones, "left").sum() + np.searchsorted(zeros, ones, "right").sum()
    return int(below) / (2 * len(ones) * len(zeros))
