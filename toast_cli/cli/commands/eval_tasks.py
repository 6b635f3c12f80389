"""`toast eval --tasks`: the tasks of lm-evaluation-harness, in one table for all runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from toast_cli.evaluation.harness.tasks import HarnessRequest, TaskMetric, evaluate_tasks, list_task_metrics
from toast_cli.utils.names import escape_newlines

ARROWS = {True: "↑", False: "↓", None: ""}
"""Mark of a metric by whether a higher value is better."""


def run_task_eval(
    runs: list[Path], request: HarnessRequest, weights: str | None, device: str | None, alpha: float | None
) -> tuple[dict[str, Any], Table]:
    """Evaluate runs on tasks of the harness.

    Returns:
        The results of every run as JSON, keyed by its path, and a table of them.
    """
    results = evaluate_tasks(runs, request, weights, device, alpha)
    return results, build_task_table(results, request)


def build_task_table(results: dict[str, Any], request: HarnessRequest) -> Table:
    """Return a table with a row per task and metric, and a column per run: the value ± its standard error."""
    by_run = {run: list_task_metrics(found) for run, found in results.items()}
    first = next(iter(results.values()))
    limit = "" if request.limit is None else f", the first {request.limit:,} questions of each"
    table = Table(title=f"Tasks of lm-eval: value ± standard error{limit}", title_justify="left")
    for heading in ("task", "shots", "metric"):
        table.add_column(heading)
    for run in results:
        table.add_column(escape_newlines(run), justify="right")
    for rows in zip(*by_run.values(), strict=True):
        each = rows[0]
        shots = first.get("n-shot", {}).get(each.task, "")
        table.add_row(
            escape_newlines(each.task),
            str(shots),
            f"{each.metric} {ARROWS[each.higher_is_better]}".rstrip(),
            *map(_format_metric, rows),
        )
    return table


def _format_metric(metric: TaskMetric) -> str:
    return f"{metric.value:.4f}" + ("" if metric.error is None else f" ± {metric.error:.4f}")
