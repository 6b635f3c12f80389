"""Accuracy and attention on the object against training images, steps and seconds: what `Suite.curves` describes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.bench.results import Results
from toast_cli.bench.suite import Curves
from toast_cli.bench.tables.figures import as_svg, in_page
from toast_cli.bench.tables.metrics import judged, metric_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCURACY, ATTENTION = "accuracy, % (or what the task is judged by)", "attention on the object, %"
AXES = {"images": "training images", "steps": "optimizer steps", "seconds": "seconds of a run, test included"}


@dataclass(frozen=True)
class Point:
    """One point of a curve: the mean over seeds, its sample standard deviation (0 for one seed), and its runs."""

    x: float
    mean: float
    std: float
    runs: tuple[str, ...]


def points(results: Results, curves: Curves, row: str) -> dict[tuple[str, str], list[Point]]:
    """Return a row's curves by (unit, axis); an axis without a finished run has no point."""
    found: dict[tuple[str, str], list[Point]] = {}
    for dataset, images in curves.images.items():
        records = list(results.records(dataset, row).values())
        if not records:
            continue
        seconds = statistics.fmean(record["seconds"] for record in records)
        for unit, values in ((ACCURACY, [_tested(record) for record in records]), (ATTENTION, _looked(records))):
            for axis, x in (("images", float(images)), ("seconds", seconds)):
                if values:
                    found.setdefault((unit, axis), []).append(_point(x, values, records))
    records = list(results.records(curves.steps_on, row).values())
    by_step: dict[tuple[str, int], list[float]] = {}
    for record in records:
        for step, metrics in _validations(results.out / record["run"] / "metrics.jsonl"):
            by_step.setdefault((ACCURACY, step), []).append(_scaled(metrics))
            if (share := _last_share(metrics.get("attention_share"))) is not None:
                by_step.setdefault((ATTENTION, step), []).append(share)
    for (unit, step), values in sorted(by_step.items()):
        if len(values) == len(records):
            found.setdefault((unit, "steps"), []).append(_point(step, values, records))
    return found


def curves_figure(results: Results, curves: Curves) -> Figure:
    """Draw a panel for each unit and axis, and a line for each row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    grid = figure.subplots(2, 3, sharex="col", sharey="row")
    for number, (name, row) in enumerate(curves.rows.items()):
        lines = points(results, curves, row)
        for i, unit in enumerate((ACCURACY, ATTENTION)):
            for j, axis in enumerate(AXES):
                if found := sorted(lines.get((unit, axis), []), key=lambda point: point.x):
                    xs, means, stds = ([getattr(point, part) for point in found] for part in ("x", "mean", "std"))
                    style = {"color": f"C{number}", "marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.4}
                    grid[i, j].errorbar(xs, means, yerr=stds, label=name, **style)
    for j, axis in enumerate(AXES):
        grid[1, j].set_xlabel(AXES[axis] + (f" ({curves.steps_on}, validation)" if axis == "steps" else ""))
        if axis != "steps":
            grid[1, j].set_xscale("log")
        for i, unit in enumerate((ACCURACY, ATTENTION)):
            grid[i, j].grid(color="#ddd")
            grid[i, j].set_axisbelow(True)
            grid[i, j].spines[["top", "right"]].set_visible(False)
            if j == 0:
                grid[i, j].set_ylabel(unit)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def write_curves(results: Results, folder: Path) -> list[str]:
    """Write every figure of curves as PNG and CSV; return them as HTML."""
    from matplotlib import rc_context

    from toast_cli.bench.tables.render import as_csv
    from toast_cli.utils.atomic import write_text, written_whole

    parts = []
    for name, curves in results.board.experiment.suite.curves.items():
        with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
            figure = curves_figure(results, curves)
            svg = as_svg(figure)
            folder.mkdir(parents=True, exist_ok=True)
            with written_whole(folder / f"{name}.png") as temporary:
                figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
        write_text(folder / f"{name}.csv", as_csv(_rows(results, curves)))
        alt = f"{curves.title}: {ACCURACY} and {ATTENTION} by method; {name}.csv has the numbers and their runs."
        parts += [
            f"<h2>{escape(curves.title)}</h2>",
            in_page(svg, alt, "Mean over seeds with the sample standard deviation."),
        ]
    return parts


def _rows(results: Results, curves: Curves) -> Iterable[Mapping[str, Any]]:
    for name, row in curves.rows.items():
        for (unit, axis), found in points(results, curves, row).items():
            for point in found:
                yield {
                    "row": name,
                    "unit": unit,
                    "axis": AXES[axis],
                    "x": point.x,
                    "mean": point.mean,
                    "std": point.std,
                    "runs": " ".join(point.runs),
                }


def _point(x: float, values: Sequence[float], records: Sequence[Mapping[str, Any]]) -> Point:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return Point(x, statistics.fmean(values), std, tuple(record["run"] for record in records))


def _tested(record: Mapping[str, Any]) -> float:
    return _scaled(judged(record))


def _scaled(metrics: Mapping[str, Any]) -> float:
    """Return the number that a task is judged by, in the unit of a table."""
    return metric_of(metrics).scale * metrics[metric_of(metrics).name]


def _looked(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the attention share of the pass that counts, of every run; empty where one has none."""
    shares = [_last_share(record["attention"]) for record in records]
    return [share for share in shares if share is not None] if None not in shares else []


def _last_share(shares: Mapping[str, float] | None) -> float | None:
    """Return the share of the pass that counts, in percent."""
    share = (shares or {}).get("pass_two", (shares or {}).get("pass_one"))
    return None if share is None else 100 * share


def _validations(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the step and the metrics of every validation that a run logged."""
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(line["step"], line["validation"]) for line in lines if line.get("validation")]
