"""What a table's means are over, which numbers are bold in columns of every kind, and what is said where none is."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.unit.bench.made_up import accuracy, filled
from toast_cli.bench.suite import Suite, parse_suite
from toast_cli.bench.tables.build import build_tables
from toast_cli.bench.tables.model import FilledTable, NumberCell
from toast_cli.storage.checksums import append_checksummed_line
from toast_cli.utils.errors import ToastError

SUITE = """
backbone: vit_demo_3
datasets: {Easy: demo, Hard: demo}
rows:
  linear: {method: linear}
  lora: {method: lora}
seeds: [0, 1, 2]
tables:
  one:
    title: One
    columns: %s
    rows: {Linear: {run: linear}, LoRA: {run: lora, paper: %s}}
"""


def with_columns(columns: str, paper: str = "[]") -> Suite:
    return parse_suite(SUITE % (columns, paper), "one.yaml")


def number(table: FilledTable, row: str, heading: str, span: str = "") -> NumberCell:
    (line,) = (line for line in table.lines if line.name == row)
    cell = line.cells[[(each.span, each.heading) for each in table.columns].index((span, heading))]
    assert isinstance(cell, NumberCell)
    return cell


def test_a_spread_is_over_seeds_alone_where_each_is_a_mean_over_data_sets(tmp_path: Path) -> None:
    # Data sets differ by 40 points and seeds by little: what is spread is the seeds.
    found = filled(
        with_columns("{validation: validation, time: minutes, Avg: average}"),
        tmp_path,
        lambda dataset, row, seed: accuracy((90 if dataset == "Easy" else 50) + seed, seconds=60.0 * (1 + seed)),
    )
    (table,) = build_tables(found)
    for heading in ("validation", "Avg"):
        cell = number(table, "Linear", heading)
        assert (cell.mean, cell.std) == (pytest.approx(71), pytest.approx(1)), heading
        assert (cell.count, cell.wanted) == (3, 3)
    assert number(table, "Linear", "time").std == pytest.approx(statistics.stdev([1, 2, 3]))
    assert "Mean ± sample standard deviation over seeds 0, 1, 2." in table.notes
    (over,) = (note for note in table.notes if "mean over the row's data sets" in note)
    assert over.startswith("validation, time, Avg: each seed's value is its mean")


def test_shares_of_attention_on_several_data_sets_are_in_no_mean_and_say_of_what_they_are(tmp_path: Path) -> None:
    def left(dataset: str, row: str, seed: int) -> dict[str, Any]:
        folder = tmp_path / f"runs/{dataset}-{row}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        region = "its box" if dataset == "Easy" else "its cell"
        (folder / "results.json").write_text(json.dumps({"attended_region": region}))
        return accuracy(50, attention={"pass_one": 0.6 if dataset == "Easy" else 0.2})

    (table,) = build_tables(filled(with_columns('{Easy: Easy, looks: "attention:pass_one"}'), tmp_path, left))
    assert [(each.span, each.heading) for each in table.columns] == [("", "Easy"), ("looks", "Easy"), ("looks", "Hard")]
    assert str(number(table, "Linear", "Easy", "looks")) == "60.0 ± 0.0"
    assert str(number(table, "Linear", "Hard", "looks")) == "20.0 ± 0.0"
    assert any("its box (Easy); its cell (Hard)" in note for note in table.notes)


def judged(out: Path, run: str, scores: list[float], judge: str = "judge") -> None:
    folder = out / run / "judge" / "questions"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "judgements.jsonl").open("a") as file:
        for place, score in enumerate(scores):
            line = {"question_id": place, "category": "fermi" if place % 2 else "writing", "judge": judge}
            file.write(json.dumps(line | {"score": score}) + "\n")


def test_a_judges_best_is_bold_where_the_same_questions_show_it(tmp_path: Path) -> None:
    low, high = [4.0, 5, 3, 4, 6, 4, 5, 4], [8.0, 9, 7, 8, 8, 9, 7, 8]
    for seed in range(3):
        judged(tmp_path, f"runs/Easy-linear-{seed}", low)
        judged(tmp_path, f"runs/Easy-lora-{seed}", high)
        judged(tmp_path, f"runs/Easy-lora-{seed}", [1.0, 1.0], judge="another")
        with (tmp_path / f"runs/Easy-lora-{seed}/judge/questions/judgements.jsonl").open("a") as file:
            file.write('{"question_id": 3, "sco')  # a session that was cut short
    only = with_columns('{Avg: "judge:overall"}')
    rows = {name: row.model_copy(update={"on": ("Easy",)}) for name, row in only.rows.items()}
    (table,) = build_tables(filled(only.model_copy(update={"rows": rows}), tmp_path, lambda *_: accuracy(50)))
    best, other = number(table, "LoRA", "Avg"), number(table, "Linear", "Avg")
    assert best.best and not other.best
    assert (best.against["Linear"].pairs, best.against["Linear"].over) == (8, "questions")
    assert best.mean == pytest.approx(statistics.fmean(high)), "another judge's scores are not mixed in"
    assert "Scored by judge on questions. Not shown: scores by another on questions." in table.notes
    assert any("same questions" in note for note in table.notes if note.startswith("Bold"))


def test_a_damaged_score_is_an_error_and_in_no_mean(tmp_path: Path) -> None:
    for seed in range(3):
        judged(tmp_path, f"runs/Easy-linear-{seed}", [4.0, 5.0])
    file = tmp_path / "runs/Easy-linear-1/judge/questions/judgements.jsonl"
    append_checksummed_line(file, {"question_id": 2, "category": "fermi", "judge": "judge", "score": 4.0})
    file.write_text(file.read_text().replace('"judge", "score": 4.0, "sha', '"judge", "score": 9.0, "sha'))
    only = with_columns('{Avg: "judge:overall"}')
    with pytest.raises(ToastError) as raised:
        build_tables(filled(only, tmp_path, lambda *_: accuracy(50)))
    assert "Line 3" in raised.value.why and "toast eval --run" in raised.value.what_to_do


def test_columns_without_a_bold_number_say_why(tmp_path: Path) -> None:
    def left(dataset: str, row: str, seed: int) -> dict[str, Any] | None:
        if dataset == "Hard":
            return accuracy(60) if row == "linear" else None
        return accuracy(50 + (seed if row == "linear" else 2 - seed))

    (table,) = build_tables(filled(with_columns("{Easy: Easy, Hard: Hard, v: validation}"), tmp_path, left))
    assert "Not bold: Easy (no row is significantly better than every other)." in table.notes
    assert "Not bold: Hard (only one row is measured)." in table.notes
    assert "Not bold: v (used to select hyper-parameters or epochs)." in table.notes
    single = filled(with_columns("{Easy: Easy}"), tmp_path, lambda _, row, seed: accuracy(50) if seed == 1 else None)
    (table,) = build_tables(single)
    assert "Single seed, 1: no standard deviation." in table.notes
    assert any("nothing to pair" in note for note in table.notes)


def test_the_papers_digits_are_a_columns_digits(tmp_path: Path) -> None:
    found = filled(with_columns("{Easy: Easy, Hard: Hard}", "[76.80, 1x]"), tmp_path, lambda *_: accuracy(50.25))
    (table,) = build_tables(found)
    assert str(number(table, "Linear", "Easy")) == "50.2 ± 0.0"
    digits = filled(with_columns("{Easy: Easy, Hard: Hard}", "[76.85, 1x]"), tmp_path, lambda *_: accuracy(50.25))
    (table,) = build_tables(digits)
    assert str(number(table, "Linear", "Easy")) == "50.25 ± 0.00" and table.lines[1].paper == ("76.85", "1x")
