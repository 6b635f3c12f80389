"""Answers of a model, made up, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toast_cli.data.base import Sample
from toast_cli.training.evaluate import SplitAnswers
from toast_cli.utils.errors import ToastError


class GreySplit:
    """Grey images, each with the shade of its index; those named `broken` cannot be read."""

    has_masks = False

    def __init__(self, names: Sequence[str], labels: Sequence[int], folders: Sequence[Path] = ()) -> None:
        self.names, self.labels, self.folders = names, labels, frozenset(folders)

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Sample:
        if "broken" in self.names[index]:
            raise ToastError(f"{self.names[index]} cannot be read.", "It is truncated.", code="image.unreadable")
        return Sample(Image.new("RGB", (640, 480), (index,) * 3), self.labels[index], self.names[index])


def answers_of(
    classes: Sequence[str],
    label: Sequence[int] | np.ndarray,
    chosen: Sequence[int] | np.ndarray,
    probability: Sequence[float] | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    samples: Any = None,
    **more: Any,
) -> SplitAnswers:
    """Return answers to a split of images; without probabilities, they are NaN."""
    names = names or [f"{number}.jpg" for number in range(len(label))]
    columns = {
        "index": np.arange(len(label)),
        "label": np.asarray(label, dtype=np.int64),
        "chosen": np.asarray(chosen, dtype=np.int64),
        "probability": np.asarray([np.nan] * len(label) if probability is None else probability, dtype=np.float32),
    }
    samples = samples or GreySplit(names, list(map(int, label)))
    fields = {"target": "class", "data": {"name": "folder", "path": "pets"}, "split": "test", **more}
    return SplitAnswers(samples=samples, classes=tuple(classes), columns=columns, **fields)


def pixel_answers(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> SplitAnswers:
    """Return answers with a class per pixel."""
    samples = GreySplit(["0.png"], [-1])
    return SplitAnswers("pixels", {"name": "masks"}, "test", samples, tuple(classes), confusion=np.array(counts))
