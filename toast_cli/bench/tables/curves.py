"""Figures of `Suite.curves`: accuracy and attention on the object over training images, steps and seconds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from toast_cli.bench.results import ExperimentResults
from toast_cli.bench.suite import CurvesFigureOptions
from toast_cli.bench.tables.figures import MAX_LABEL_LENGTH, PageFigure, to_svg
from toast_cli.bench.tables.metrics import get_decisive_metrics, get_scaled_score
from toast_cli.utils.files import write_text
from toast_cli.utils.formatting import format_csv_records
from toast_cli.utils.names import shorten_name, to_file_name
from toast_cli.visualize.figure_output import save_figure

ACCURACY_LABEL, ATTENTION_LABEL = "accuracy, % (or the metric of the task)", "attention on the object, %"
AXIS_LABELS = {"images": "training images", "steps": "optimizer steps", "seconds": "seconds of a run, test included"}


@dataclass(frozen=True)
class CurvePoint:
    """A point of a curve: mean over seeds, sample standard deviation (0 for one seed), and runs."""

    x: float
    mean: float
    std: float
    runs: tuple[str, ...]


def compute_curve_points(
    results: ExperimentResults, curves: CurvesFigureOptions, row: str
) -> dict[tuple[str, str], list[CurvePoint]]:
    """Return a row's points by (unit, axis), for axes with finished runs."""
    found: dict[tuple[str, str], list[CurvePoint]] = {}
    for dataset, images in curves.images.items():
        records = list(results.get_records(dataset, row).values())
        if not records:
            continue
        seconds = statistics.fmean(record["seconds"] for record in records)
        for unit, values in (
            (ACCURACY_LABEL, [get_scaled_score(get_decisive_metrics(record)) for record in records]),
            (ATTENTION_LABEL, _get_attention_percents(records)),
        ):
            for axis, x in (("images", float(images)), ("seconds", seconds)):
                if values:
                    found.setdefault((unit, axis), []).append(_make_point(x, values, records))
    records = list(results.get_records(curves.steps_on, row).values())
    by_step: dict[tuple[str, int], list[float]] = {}
    for record in records:
        for step, metrics in _read_validations(results.out / record["run"] / "metrics.jsonl"):
            by_step.setdefault((ACCURACY_LABEL, step), []).append(get_scaled_score(metrics))
            if (share := _get_last_percent(metrics.get("attention_share"))) is not None:
                by_step.setdefault((ATTENTION_LABEL, step), []).append(share)
    for (unit, step), values in sorted(by_step.items()):
        if len(values) == len(records):
            found.setdefault((unit, "steps"), []).append(_make_point(step, values, records))
    return found


def draw_suite_curves(results: ExperimentResults, curves: CurvesFigureOptions) -> Figure:
    """Draw a panel for each unit and axis, with a line for each row."""
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    grid = figure.subplots(2, 3, sharex="col", sharey="row")
    for number, (name, row) in enumerate(curves.rows.items()):
        lines = compute_curve_points(results, curves, row)
        label = shorten_name(name, MAX_LABEL_LENGTH)
        for i, unit in enumerate((ACCURACY_LABEL, ATTENTION_LABEL)):
            for j, axis in enumerate(AXIS_LABELS):
                if found := sorted(lines.get((unit, axis), []), key=lambda point: point.x):
                    xs, means, stds = ([getattr(point, part) for point in found] for part in ("x", "mean", "std"))
                    style = {"color": f"C{number}", "marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.4}
                    grid[i, j].errorbar(xs, means, yerr=stds, label=label, **style)
    for j, axis in enumerate(AXIS_LABELS):
        grid[1, j].set_xlabel(AXIS_LABELS[axis] + (f" ({curves.steps_on}, validation)" if axis == "steps" else ""))
        if axis != "steps":
            grid[1, j].set_xscale("log")
        for i, unit in enumerate((ACCURACY_LABEL, ATTENTION_LABEL)):
            grid[i, j].grid(color="#ddd")
            grid[i, j].set_axisbelow(True)
            grid[i, j].spines[["top", "right"]].set_visible(False)
            if j == 0:
                grid[i, j].set_ylabel(unit)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def write_curve_figures(results: ExperimentResults, folder: Path) -> list[tuple[str, PageFigure]]:
    """Write every figure of curves as PNG and CSV; return the figures with their titles."""
    figures = []
    for name, curves in results.board.experiment.suite.curves.items():
        figure, file = draw_suite_curves(results, curves), to_file_name(name)
        svg = to_svg(figure, name)
        save_figure(figure, folder / f"{file}.png")
        write_text(folder / f"{file}.csv", format_csv_records(_iterate_rows(results, curves)))
        shown = f"{ACCURACY_LABEL} and {ATTENTION_LABEL} by method"
        alt = f"{curves.title}: {shown}; {file}.csv contains the numbers and their runs."
        caption = "Mean over seeds with the sample standard deviation."
        figures.append((curves.title, PageFigure(svg, alt, caption)))
    return figures


def _iterate_rows(results: ExperimentResults, curves: CurvesFigureOptions) -> Iterable[Mapping[str, Any]]:
    for name, row in curves.rows.items():
        for (unit, axis), found in compute_curve_points(results, curves, row).items():
            for point in found:
                yield {
                    "row": name,
                    "unit": unit,
                    "axis": AXIS_LABELS[axis],
                    "x": point.x,
                    "mean": point.mean,
                    "std": point.std,
                    "runs": " ".join(point.runs),
                }


def _make_point(x: float, values: Sequence[float], records: Sequence[Mapping[str, Any]]) -> CurvePoint:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return CurvePoint(x, statistics.fmean(values), std, tuple(record["run"] for record in records))


def _get_attention_percents(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the attention share of every run's last pass, an empty list if a run has none."""
    shares = [_get_last_percent(record["attention"]) for record in records]
    return [share for share in shares if share is not None] if None not in shares else []


def _get_last_percent(shares: Mapping[str, float] | None) -> float | None:
    """Return the share of the last pass in percent."""
    share = (shares or {}).get("pass_two", (shares or {}).get("pass_one"))
    return None if share is None else 100 * share


def _read_validations(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the step and the metrics of every validation that a run logged."""
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(line["step"], line["validation"]) for line in lines if line.get("validation")]
