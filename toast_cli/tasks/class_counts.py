"""How many images of each class were given each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassCounts:
    """How many images of each class were given each class.

    `confusion` holds, for every pair that occurs, the label, the predicted class and the number of images,
    `[3, pairs]` int64, in order. There are at most as many pairs as images, also with ten thousand classes. `classes`
    is the number of classes.
    """

    classes: int
    confusion: Tensor

    @cached_property
    def support(self) -> Tensor:
        """Return the number of images of each class, `[classes]`."""
        return self._sum(self.confusion[0], self.confusion[2])

    @cached_property
    def predicted(self) -> Tensor:
        """Return the number of images that were given each class, `[classes]`."""
        return self._sum(self.confusion[1], self.confusion[2])

    @cached_property
    def correct(self) -> Tensor:
        """Return the number of images of each class that were given it, `[classes]`."""
        labels, predicted, counts = self.confusion
        right = labels == predicted
        return self._sum(labels[right], counts[right])

    @property
    def precision(self) -> Tensor:
        """Return the precision of each class, `[classes]` float64; 0 for a class that is never predicted."""
        return self.correct / self.predicted.double().clamp_min(1)

    @property
    def recall(self) -> Tensor:
        """Return the recall of each class, `[classes]` float64; 0 for a class without images."""
        return self.correct / self.support.double().clamp_min(1)

    @property
    def f1(self) -> Tensor:
        """Return the F1 score of each class, `[classes]` float64; 0 for a class that is neither given nor predicted."""
        return 2 * self.correct / (self.support + self.predicted).double().clamp_min(1)

    def to_dense(self) -> Tensor:
        """Return the confusion matrix `[labels, predictions]`, int64; large for many classes."""
        labels, predicted, counts = self.confusion
        return torch.zeros(self.classes, self.classes, dtype=torch.int64).index_put_((labels, predicted), counts)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain values, for `from_dict`."""
        return {"classes": self.classes, "confusion": self.confusion.tolist()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ClassCounts:
        """Return the counts of `to_dict`."""
        return cls(plain["classes"], torch.tensor(plain["confusion"], dtype=torch.int64).reshape(3, -1))

    def _sum(self, classes: Tensor, counts: Tensor) -> Tensor:
        return torch.zeros(self.classes, dtype=torch.int64).index_add_(0, classes, counts)
