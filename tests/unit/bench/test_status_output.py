"""Tables as they are shown: nothing is cut at any width, and column groups and runs are in every format."""

from __future__ import annotations

import csv
import io
import itertools
import re
from html import unescape
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.bench.made_up import accuracy, filled
from toast_cli.bench import suite
from toast_cli.bench.tables.build import build_tables
from toast_cli.bench.tables.figures import draw_table_figures
from toast_cli.bench.tables.render import format_latex, format_markdown, write_experiment_page, write_tables
from toast_cli.cli.output.bench_tables import print_filled_table
from toast_cli.recipe.builtin import list_suites


def shares(dataset: str, row: str, seed: int) -> dict[str, object]:
    """Numbers as wide as they get, with a share of attention wherever a column asks for one."""
    return accuracy(80 + seed % 7, attention={"pass_one": 0.2, "pass_two": 0.3}, trained_parameters=14_310_344)


@pytest.mark.parametrize("name", list_suites())
def test_every_row_and_every_cell_of_every_suite_is_whole_in_a_terminal(name: str, tmp_path: Path) -> None:
    tables = build_tables(filled(suite.load_suite(name)[1], tmp_path, shares))
    for table, width in itertools.product(tables, (80, 100, 120, 200)):
        console = Console(width=width, file=io.StringIO(), force_terminal=False)
        print_filled_table(table, console)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        lines = [line.strip() for line in shown.splitlines()]
        assert max(map(len, shown.splitlines())) <= width and "…" not in shown
        heads = " ".join(lines)
        assert all(column.heading in heads and column.span in heads for column in table.columns)
        for row in table.lines:
            # A row is there once a piece; together its pieces have all of its cells, in order.
            pieces = [at for at, line in enumerate(lines) if re.match(re.escape(row.name) + r"(  |$)", line)]
            cells = [text for at in pieces for text in re.split(r"\s{2,}", lines[at])[1:]]
            assert cells == [str(cell) for cell in row.cells], row.name
            if any(row.paper):
                papers = " ".join(lines[at + 1].removeprefix("paper") for at in pieces if lines[at + 1][:5] == "paper")
                assert papers.split() == [text for text in row.paper if text]


@pytest.mark.e2e
def test_groups_of_columns_are_in_every_format(tmp_path: Path) -> None:
    results = filled(suite.load_suite("vtab1k")[1], tmp_path, shares)
    first, _ = build_tables(results)
    text = format_markdown(first)
    assert [line.split(" | ")[0] for line in text.splitlines() if "| Cifar100 |" in line] == ["| *Natural*"]
    assert "| *Structured* | Clevr-Count | " in text
    folder = write_tables(results, tmp_path)
    rows = list(csv.DictReader(io.StringIO((folder / "table-2.csv").read_text())))
    assert {row["span"] for row in rows if row["column"] == "EuroSAT"} == {"Specialized"}
    assert '<th colspan="8">Structured</th>' in write_experiment_page(results, tmp_path).read_text()


def test_a_wide_table_in_latex_turns_its_headings_and_fits_the_page(tmp_path: Path) -> None:
    text = format_latex(build_tables(filled(suite.load_suite("vtab1k")[1], tmp_path, shares))[0])
    preamble = re.search(r"usepackage\{(.*?)\}", text.splitlines()[0])
    assert preamble is not None and {"booktabs", "xcolor", "adjustbox"} <= set(preamble[1].split(","))
    assert text.count(r"\rotatebox{90}") == 19 and r"max width=\textwidth" in text and r"\begin{table*}" in text
    assert r"\cmidrule(lr){2-8}\cmidrule(lr){9-12}\cmidrule(lr){13-20}" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert re.findall(r"\\begin\{(.*?)\}", text) == re.findall(r"\\end\{(.*?)\}", text)[::-1]
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    for line in body.splitlines():
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == 19, line
    assert r"& {\tiny $\pm$" in body, "spreads stand below: beside the means, 19 of them would be too small to read"


def test_a_narrow_table_in_latex_has_its_spreads_beside_the_means(tmp_path: Path) -> None:
    text = format_latex(build_tables(filled(suite.load_suite("segmentation")[1], tmp_path, shares))[0])
    assert r"\rotatebox" not in text and r"\begin{table}" in text and r"\tiny" not in text and r" $\pm$ " in text


def test_parameters_and_flops_name_their_runs(tmp_path: Path) -> None:
    results = filled(suite.load_suite("demo")[1], tmp_path, shares)
    folder = write_tables(results, tmp_path)
    rows = list(csv.DictReader(io.StringIO((folder / "demo.csv").read_text())))
    sizes = [row for row in rows if row["column"] in ("trained", "FLOPs")]
    assert len(sizes) == 8
    for row in sizes:
        assert row["folders"] and row["seeds"] == "0 1 2" and row["test_hash"] == "c" and "torch" in row["versions"]
    assert sizes[0]["mean"] == "14310344.0" and sizes[0]["unit"] == "trained parameters"
    page = write_experiment_page(results, tmp_path).read_text()
    assert re.search(
        r'<td data-value="14310344.0" title="runs/Markings-linear-0, seed 0, test split c, toast 0, [^"]*">14.3M',
        page,
    )


def test_there_is_a_figure_for_every_unit_with_a_panel_a_column_and_a_text_for_the_blind(
    tmp_path: Path,
) -> None:
    (table,) = build_tables(filled(suite.load_suite("demo")[1], tmp_path, shares))
    drawn = draw_table_figures(table)
    named = [figure.alt.partition(": ")[2].partition(": ")[2] for figure in drawn]
    assert [name.partition(", by row")[0] for name in named] == [
        "accuracy, %",
        "share of attention on the object, %",
        "minutes",
    ]
    assert "a panel for each of validation, Markings;" in named[0]
    assert all(f">{row.name}</text>" in drawn[0].svg for row in table.lines), (
        "rows are told apart by name, not by colour"
    )
    page = write_experiment_page(filled(suite.load_suite("demo")[1], tmp_path, shares), tmp_path).read_text()
    alts = re.findall(r'<svg role="img" aria-label="([^"]*)" ', page)
    assert [unescape(alt) for alt in alts] == [figure.alt for figure in drawn]


def test_where_no_data_can_be_read_no_time_is_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    from toast_cli.bench.scheduler.cost_estimate import StageCost
    from toast_cli.cli.output.bench_tables import print_costs
    from toast_cli.cli.output.console import out

    print_costs([StageCost("Dogs", "linear", "final", 3, None, "Stanford Dogs was not found.")], 1, out, as_json=False)
    told = capsys.readouterr().out
    assert "3 runs; no time estimate" in told and "about" not in told
