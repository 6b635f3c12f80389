"""Figures of accuracy and attention against images, steps and seconds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.bench.made_up import accuracy, filled
from toast_cli.bench.results import ExperimentResults
from toast_cli.bench.suite import Suite, parse_suite
from toast_cli.bench.tables.curves import (
    ACCURACY_LABEL,
    ATTENTION_LABEL,
    compute_curve_points,
    draw_suite_curves,
)
from toast_cli.bench.tables.render import write_experiment_page
from toast_cli.utils.errors import UsageError

SUITE = """
backbone: vit_demo_3
datasets: {few: demo, many: demo}
rows:
  linear: {method: linear}
  toast: {method: toast}
seeds: [0, 1]
curves:
  growth:
    title: Growth
    images: {few: 50, many: 1500}
    steps_on: many
    rows: {Linear: linear, TOAST: toast}
"""


def suite() -> Suite:
    return parse_suite(SUITE, "growth.yaml")


def left(dataset: str, row: str, seed: int) -> dict[str, Any] | None:
    if row == "toast" and dataset == "few" and seed == 1:
        return None
    shares = {"pass_one": 0.1, **({"pass_two": 0.4 + 0.2 * seed} if row == "toast" else {})}
    return accuracy(50 + 10 * seed, attention=shares, seconds=100.0 if dataset == "many" else 10.0)


@pytest.fixture
def results(tmp_path: Path) -> ExperimentResults:
    found = filled(suite(), tmp_path, left)
    for seed in (0, 1):
        run = tmp_path / "runs" / f"many-toast-{seed}"
        run.mkdir(parents=True)
        lines = [
            {"kind": "step", "step": 5, "loss": 1.0},
            {"kind": "epoch", "step": 10, "validation": {"accuracy": 0.2 + 0.2 * seed}},
            {"kind": "epoch", "step": 20},
            {"kind": "epoch", "step": 30, "validation": {"accuracy": 0.8, "attention_share": {"pass_two": 0.5}}},
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


def test_a_point_is_a_mean_over_seeds_with_its_runs(results: ExperimentResults) -> None:
    found = compute_curve_points(results, suite().curves["growth"], "toast")
    few, many = found[ACCURACY_LABEL, "images"]
    assert (few.x, few.mean, few.std, few.runs) == (50, 50, 0, ("runs/few-toast-0",))
    assert (many.x, many.mean) == (1500, 55) and many.std == pytest.approx(7.07, abs=0.01)
    assert [point.x for point in found[ACCURACY_LABEL, "seconds"]] == [10, 100]
    assert found[ATTENTION_LABEL, "images"][1].mean == pytest.approx(50)


def test_the_pass_that_counts_is_the_last_one(results: ExperimentResults) -> None:
    found = compute_curve_points(results, suite().curves["growth"], "linear")
    assert found[ATTENTION_LABEL, "images"][0].mean == pytest.approx(10)


def test_validation_is_drawn_at_the_steps_where_it_was_measured(results: ExperimentResults) -> None:
    found = compute_curve_points(results, suite().curves["growth"], "toast")
    assert [(point.x, round(point.mean)) for point in found[ACCURACY_LABEL, "steps"]] == [(10, 30), (30, 80)]
    assert [(point.x, round(point.mean)) for point in found[ATTENTION_LABEL, "steps"]] == [(30, 50)]


def test_the_figure_has_a_line_for_every_row_and_the_files_name_every_run(
    results: ExperimentResults, tmp_path: Path
) -> None:
    figure = draw_suite_curves(results, suite().curves["growth"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Linear", "TOAST"]
    page = write_experiment_page(results, tmp_path).read_text()
    assert "<h2>Growth</h2>" in page and "<svg" in page.partition("<h2>Growth</h2>")[2]
    with (tmp_path / "tables" / "growth.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["row"] for row in rows} == {"Linear", "TOAST"} and all(row["runs"] for row in rows)
    assert (tmp_path / "tables" / "growth.png").stat().st_size > 5000


def test_a_name_that_is_not_in_the_suite_is_refused() -> None:
    with pytest.raises(UsageError, match="'none'") as refused:
        parse_suite(SUITE.replace("steps_on: many", "steps_on: none"), "growth.yaml")
    assert refused.value.code == "bench.invalid-suite"
