"""The metric that scores a run, in searches and in tables, and the format of parameter counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toast_cli import registry
from toast_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class TableMetric:
    """A metric: its key, its label, whether higher is better, and its scale and decimals in a table."""

    name: str
    words: str
    higher: bool = True
    scale: float = 100.0
    digits: int = 1

    @property
    def sign(self) -> int:
        """1 if higher is better, else -1."""
        return 1 if self.higher else -1


TASK_METRICS = (
    TableMetric("mean_iou", "mean IoU, %"),
    TableMetric("accuracy", "accuracy, %"),
    TableMetric("mean_ap", "mAP, %"),
    TableMetric("rmse", "RMSE", higher=False, scale=1.0, digits=3),
    TableMetric("loss", "loss a token", higher=False, scale=1.0, digits=3),
)
"""Metrics that score a task, in order of precedence."""


def select_metric(metrics: Mapping[str, Any]) -> TableMetric:
    """Return the metric that scores these results."""
    return next(metric for metric in TASK_METRICS if metric.name in metrics)


def get_registered_metric(name: str) -> TableMetric:
    """Return a registered metric of logits.

    Raises:
        UsageError: There is no such metric. The message offers the nearest one.
    """
    metric = registry.load_entry(registry.METRICS, name)
    if metric.percent:
        return TableMetric(name, f"{metric.label}, %", metric.higher)
    return TableMetric(name, metric.label, metric.higher, scale=1.0, digits=3)


def compute_score(metrics: Mapping[str, Any]) -> float:
    """Return the score, with its sign chosen so that higher is better."""
    metric = select_metric(metrics)
    return metric.sign * metrics[metric.name]


def compute_search_score(recipe: Recipe, metrics: Mapping[str, Any]) -> float:
    """Return the score of a run in a search: the validation metric that selects its epochs, higher is better."""
    select, task = getattr(recipe.task, "select", None), recipe.plugins.task
    if select is None or metrics.get(select) is None:
        return compute_score(metrics)
    higher = task.list_selectable_metrics(recipe.plugins.metrics)[select]
    return metrics[select] if higher else -metrics[select]


def get_scaled_score(metrics: Mapping[str, Any]) -> float:
    """Return the score in the unit of a table."""
    metric = select_metric(metrics)
    return metric.scale * metrics[metric.name]


def get_decisive_metrics(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metrics that score a finished run: those of the test split, else of the validation split."""
    return record["test"] or record["validation"]


def format_parameter_count(count: float) -> str:
    """Format a count: 14310168 as 14.3M, 150000 as 0.15M, 645 as 645."""
    for least, size, unit in ((1e9, 1e9, "B"), (1e5, 1e6, "M")):
        if count >= least:
            value = count / size
            digits = 2 if value < 1 else 1 if value < 100 else 0
            return f"{value:.{digits}f}{unit}"
    return f"{count:,.0f}"
