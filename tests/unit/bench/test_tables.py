"""Tables: means and spreads, the paper below, bold where it is deserved, and the run behind every number."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.bench.conftest import record
from toast_cli.bench.results import ExperimentResults
from toast_cli.bench.scheduler.jobs import Experiment
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.bench.scheduler.trials import Ledger
from toast_cli.bench.suite import SuiteRow, TableLayout, TableLayoutRow
from toast_cli.bench.tables.build import build_tables
from toast_cli.bench.tables.metrics import compute_search_score, format_parameter_count
from toast_cli.bench.tables.model import FilledTable, NumberCell
from toast_cli.bench.tables.render import format_latex, format_markdown, write_experiment_page, write_tables
from toast_cli.recipe.parse import build_recipe


def made(experiment: Experiment, out: Path, right: dict[tuple[str, str, int], list[bool]]) -> ExperimentScheduler:
    """The experiment's board after these finals, each with its answers; its searches are all done."""
    board = ExperimentScheduler(experiment, Ledger("memory:", out / "locks"))
    for dataset, row in experiment.cells:
        for stage in ("search", "final"):
            jobs = board.get_stage_status(dataset, row, stage)  # type: ignore[arg-type]
            assert jobs is not None
            study = board.open_study(dataset, row, stage)  # type: ignore[arg-type]
            board.ledger.enqueue_jobs(study, jobs)
            while claim := board.ledger.take_waiting_run(study, jobs):
                job = claim.job
                answered = right.get((dataset, row, job.seed)) if stage == "final" else [True]
                with claim.keep_alive():
                    if answered is None:
                        claim.mark_failed("no such luck")
                        continue
                    value = sum(answered) / len(answered)
                    run = f"runs/{job.name}"
                    (out / run).mkdir(parents=True)
                    given = {"index": list(range(len(answered))), "label": [1] * len(answered)}
                    given["chosen"] = list(map(int, answered))
                    if stage == "final":
                        (out / run / "test_answers.json").write_text(json.dumps(given))
                    claim.record_result(value, record(job.seed, value, run) | {"params": dict(job.params or {})})
    return board


@pytest.fixture
def results(experiment: Experiment, tmp_path: Path) -> ExperimentResults:
    """Linear has 20 images of 40 right, LoRA 32 and 36; one run of More failed."""
    half, most, more = [True] * 20 + [False] * 20, [True] * 32 + [False] * 8, [True] * 36 + [False] * 4
    right = {("Markings", "linear", 0): half, ("Markings", "linear", 1): half, ("More", "linear", 0): more}
    right |= {("Markings", "lora", 0): most, ("Markings", "lora", 1): more}
    return ExperimentResults(made(experiment, tmp_path, right), tmp_path)


def number(table: FilledTable, row: str, column: str) -> NumberCell:
    (line,) = (line for line in table.lines if line.name == row)
    cell = line.cells[[each.heading for each in table.columns].index(column)]
    assert isinstance(cell, NumberCell)
    return cell


def test_a_number_is_a_mean_with_its_spread_and_names_its_runs(results: ExperimentResults) -> None:
    (table,) = build_tables(results)
    lora = number(table, "LoRA", "M")
    assert str(lora) == "85.0 ± 7.1"
    assert [run["seed"] for run in lora.runs] == [0, 1]
    assert all((results.out / run["run"]).is_dir() for run in lora.runs)
    assert str(number(table, "Linear", "Avg")) == "70.0 (1 of 2)", "seed 1 of More failed, so it has no average"
    assert "0.2M" in table.lines[0].paper and str(table.lines[0].cells[2]) == "645"


def test_the_best_is_bold_only_where_its_difference_is_significant(
    results: ExperimentResults, experiment: Experiment
) -> None:
    (table,) = build_tables(results)
    best, other = number(table, "LoRA", "M"), number(table, "Linear", "M")
    assert best.best and not other.best
    assert best.against["Linear"].p == pytest.approx(other.against["LoRA"].p)
    assert best.against["Linear"].over == "test images"
    assert any("paired t-test over the same test images" in note for note in table.notes)


def test_finished_runs_that_were_not_asked_for_are_counted_below_the_table(results: ExperimentResults) -> None:
    asked = replace(results.board.experiment, seeds=(1,))
    (table,) = build_tables(ExperimentResults(ExperimentScheduler(asked, results.board.ledger), results.out))
    assert "Not shown: 3 finished runs of other seeds, rows or settings are in the ledger" in " ".join(table.notes)
    assert "Not shown" not in " ".join(build_tables(results)[0].notes)


def test_a_small_lead_is_not_bold(experiment: Experiment, tmp_path: Path) -> None:
    right = {("Markings", "linear", seed): [True, False] * 20 for seed in (0, 1)}
    right |= {("Markings", "lora", seed): [True, False] * 19 + [True, True] for seed in (0, 1)}
    (table,) = build_tables(ExperimentResults(made(experiment, tmp_path, right), tmp_path))
    assert number(table, "LoRA", "M").mean > number(table, "Linear", "M").mean
    assert not number(table, "LoRA", "M").best


def test_files_have_the_papers_numbers_and_what_every_number_is_made_of(
    results: ExperimentResults, tmp_path: Path
) -> None:
    (table,) = build_tables(results)
    text = format_markdown(table)
    assert "| LoRA | **85.0 ± 7.1** |" in text and "| *paper* | *51.5* |  | *0.2M* |" in text
    assert r"\textbf{85.0 $\pm$ 7.1}" in format_latex(table) and r"\textcolor{gray}{51.5}" in format_latex(table)
    folder = write_tables(results, tmp_path)
    assert {path.name for path in folder.iterdir()} == {"both.md", "both.tex", "both.csv", "runs.csv", "failures.csv"}
    lines = list(csv.DictReader(io.StringIO((folder / "both.csv").read_text())))
    lora = next(line for line in lines if line["row"] == "LoRA" and line["column"] == "M")
    assert (lora["seeds"], lora["test_hash"], lora["paper"]) == ("0 1", "c", "50.0")
    assert json.loads(lora["versions"]) == {"toast": "0", "torch": "2"}
    runs = list(csv.DictReader(io.StringIO((folder / "runs.csv").read_text())))
    assert len(runs) == 5
    assert json.loads(runs[0]["hyper_parameters"])["training.lr"] in (0.01, 0.001)
    failed = list(csv.DictReader(io.StringIO((folder / "failures.csv").read_text())))
    assert [(line["dataset"], line["seed"], line["reason"]) for line in failed] == [("More", "1", "no such luck")]


def test_the_page_needs_nothing_beside_it(results: ExperimentResults, tmp_path: Path) -> None:
    page = write_experiment_page(results, tmp_path).read_text()
    assert "<svg" in page and "<b>85.0 ± 7.1</b>" in page and "no such luck" in page
    assert "test split c" in page
    assert not any(outside in page for outside in ("<script ", "<link", "<img", 'href="http', "src="))
    assert page.count("<script>") == 1 and "default-src 'none'" in page


def test_counts_are_short() -> None:
    counts = (645, 99_999, 150_000, 301_256, 4_194_304, 14_310_344, 537_000_000, 6_738_415_616)
    said = ["645", "99,999", "0.15M", "0.30M", "4.2M", "14.3M", "537M", "6.7B"]
    assert [format_parameter_count(count) for count in counts] == said


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ({"set": {"init_from": None}}, "least-squares start, no --init-from given"),
        ({"set": {"init_from": None, "method.start": "random"}}, "random start, no --init-from given"),
        ({"starts": {"vit_demo_3": "runs/general"}}, "runs/general"),
    ],
)
def test_a_table_says_where_its_pre_tuned_rows_start(
    given: dict[str, Any], start: str, experiment: Experiment, tmp_path: Path
) -> None:
    steered = SuiteRow(method="toast", pretuned=True, set=given.get("set", {}))
    layout = TableLayout(title="Both", columns={"M": "Markings"}, rows={"Steered": TableLayoutRow(run="steered")})
    rows = {**experiment.suite.rows, "steered": steered}
    suite = experiment.suite.model_copy(update={"rows": rows, "tables": {"both": layout}})
    begun = replace(experiment, suite=suite, starts=given.get("starts", {}), known={"runs/general": "its digest"})
    (table,) = build_tables(
        ExperimentResults(ExperimentScheduler(begun, Ledger("memory:", tmp_path / "locks")), tmp_path)
    )
    assert f"Feedback paths of Steered: {start}." in table.notes


def test_a_suite_without_tables_has_one_of_every_row(results: ExperimentResults) -> None:
    suite = results.board.experiment.suite.model_copy(update={"tables": {}})
    board = results.board
    board.experiment = replace(board.experiment, suite=suite)
    (table,) = build_tables(results)
    assert [column.heading for column in table.columns] == ["Markings", "More", "average", "trained"]
    cells = {row.name: [str(cell) for cell in row.cells] for row in table.lines}
    assert cells["lora"][0] == "85.0 ± 7.1" and cells["linear"][0] == "50.0 ± 0.0"


def test_a_search_scores_runs_by_the_metric_that_selects_their_epochs() -> None:
    raw = {"backbone": "vit_demo_3", "dataset": "demo", "method": "linear"}
    metrics = {"accuracy": 0.9, "macro_f1": 0.4, "loss": 0.7}
    for task, score in (({}, 0.9), ({"select": "macro_f1"}, 0.4), ({"select": "loss"}, -0.7)):
        recipe = build_recipe({**raw, "task": {"name": "classification", **task}}, {}, origin="a test")
        assert compute_search_score(recipe, metrics) == score
