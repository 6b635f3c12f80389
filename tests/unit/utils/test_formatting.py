"""CSV files: what they hold is text or a number, and never a formula."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from tests.unit.bench.made_up import accuracy, filled
from toast_cli.attention.table import AttentionMetricsTable
from toast_cli.bench.suite import parse_suite
from toast_cli.bench.tables.render import write_tables
from toast_cli.utils.formatting import format_csv, format_csv_records

FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\n=1"]


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_text_that_a_spreadsheet_would_compute_gets_an_apostrophe(formula: str) -> None:
    assert list(csv.reader(io.StringIO(format_csv([[formula, "a,b"]]), newline=""))) == [["'" + formula, "a,b"]]


def test_a_carriage_return_ends_no_line() -> None:
    assert list(csv.reader(io.StringIO(format_csv([["\r=1", "a\r=1"]]), newline=""))) == [["'\n=1", "a\n=1"]]


def test_numbers_and_what_is_empty_stay_as_they_are() -> None:
    assert format_csv([[-1.5, "-1.5", "+2e-3", "-inf", "", None, "a-b"]]) == "-1.5,-1.5,+2e-3,-inf,,,a-b\n"
    assert format_csv_records([{"a": 1, "b": ""}, {"a": 2, "b": None}]) == "a,b\n1,\n2,\n"
    assert format_csv_records([]) == ""


def test_no_name_of_a_suite_is_a_formula_in_its_tables(tmp_path: Path) -> None:
    suite = parse_suite(
        """
backbone: vit_demo_3
datasets: {"=data()": demo}
rows: {"@row": {method: linear}}
seeds: [0]
tables:
  both:
    title: Both
    columns: {"+column()": "=data()"}
    rows: {"=HYPERLINK()": {run: "@row", paper: ["-1+1"]}}
""",
        "x.yaml",
    )
    folder = write_tables(filled(suite, tmp_path, lambda *_: accuracy(50)), tmp_path)
    for name in ("both.csv", "runs.csv"):
        _, *lines = csv.reader((folder / name).read_text(encoding="utf-8").splitlines())
        guarded = [cell for line in lines for cell in line if cell.startswith("'")]
        assert (
            guarded == {"both.csv": ["'=HYPERLINK()", "'+column()", "'-1+1"], "runs.csv": ["'=data()", "'@row"]}[name]
        )
        assert not [cell for line in lines for cell in line if cell.startswith(("=", "+", "-", "@"))]


def test_a_value_that_is_not_measured_is_an_empty_cell() -> None:
    numbers = AttentionMetricsTable()
    numbers.rows.append({"index": 0, "label": 0, "correct": 1.0, "pass_one/auc": float("nan")})
    assert numbers.format_per_image(["a"], ["=a.png"]) == "image,class,correct,pass_one/auc\n'=a.png,a,1,\n"
