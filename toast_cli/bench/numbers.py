"""The one number of a run that a table shows, and what decides a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A number of a split's metrics: its name, in words, whether higher is better, and its scale in a table."""

    name: str
    words: str
    higher: bool = True
    scale: float = 100.0

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.higher else -1


METRICS = (
    Metric("mean_iou", "mean IoU, %"),
    Metric("accuracy", "accuracy, %"),
    Metric("loss", "loss a token", higher=False, scale=1.0),
)
"""The first that a split has is what its task is judged by."""


def metric_of(metrics: Mapping[str, Any]) -> Metric:
    """What these metrics are judged by."""
    return next(metric for metric in METRICS if metric.name in metrics)


def score(metrics: Mapping[str, Any]) -> float:
    """The number that decides, turned so that higher is better."""
    metric = metric_of(metrics)
    return metric.sign * metrics[metric.name]
