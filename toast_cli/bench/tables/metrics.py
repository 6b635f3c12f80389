"""The one number of a run that a table shows, what decides a search, and how sizes are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TableMetric:
    """A number of a split's metrics: its name, in words, whether higher is better, its scale and digits in a table."""

    name: str
    words: str
    higher: bool = True
    scale: float = 100.0
    digits: int = 1

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.higher else -1


TASK_METRICS = (
    TableMetric("mean_iou", "mean IoU, %"),
    TableMetric("accuracy", "accuracy, %"),
    TableMetric("loss", "loss a token", higher=False, scale=1.0, digits=3),
)
"""The first that a split has is what its task is judged by."""


def select_metric(metrics: Mapping[str, Any]) -> TableMetric:
    """What these metrics are judged by."""
    return next(metric for metric in TASK_METRICS if metric.name in metrics)


def compute_score(metrics: Mapping[str, Any]) -> float:
    """The number that decides, turned so that higher is better."""
    metric = select_metric(metrics)
    return metric.sign * metrics[metric.name]


def get_scaled_score(metrics: Mapping[str, Any]) -> float:
    """The number that decides, in the unit of a table."""
    metric = select_metric(metrics)
    return metric.scale * metrics[metric.name]


def get_decisive_metrics(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a finished run is judged by: its test, or its validation where it has none."""
    return record["test"] or record["validation"]


def format_parameter_count(count: float) -> str:
    """14310168 as 14.3M, 150000 as 0.15M, 645 as 645: two significant digits at least, from a tenth of a million on."""
    for least, size, unit in ((1e9, 1e9, "B"), (1e5, 1e6, "M")):
        if count >= least:
            value = count / size
            digits = 2 if value < 1 else 1 if value < 100 else 0
            return f"{value:.{digits}f}{unit}"
    return f"{count:,.0f}"
