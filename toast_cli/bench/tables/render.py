"""Tables as Markdown, LaTeX and CSV files, and a self-contained HTML page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from markupsafe import Markup

from toast_cli.bench.results import ExperimentResults
from toast_cli.bench.tables.build import build_tables
from toast_cli.bench.tables.class_tables import iterate_class_tables
from toast_cli.bench.tables.curves import write_curve_figures
from toast_cli.bench.tables.figures import draw_table_figures
from toast_cli.bench.tables.model import Cell, FilledTable, NumberCell
from toast_cli.utils.files import write_text
from toast_cli.utils.formatting import format_csv_records, get_templates, render_template
from toast_cli.utils.names import escape_control_characters, escape_markdown, make_names_unique, to_file_name

MIN_WIDE_COLUMNS = 10
"""Number of columns from which a LaTeX table spans the page, with rotated headings and ± below the means."""


def write_tables(results: ExperimentResults, out: Path) -> Path:
    """Write the tables as Markdown, LaTeX and CSV, and the runs and failures as CSV; return the folder."""
    folder = out / "tables"
    tables = build_tables(results)
    names = make_names_unique(["runs", "failures", *(to_file_name(table.name) for table in tables)])[2:]
    for name, table in zip(names, tables, strict=True):
        write_text(folder / f"{name}.md", format_markdown(table))
        write_text(folder / f"{name}.tex", format_latex(table))
        write_text(folder / f"{name}.csv", format_csv_records(_list_cell_records(table)))
    write_text(folder / "runs.csv", format_csv_records(results.iterate_runs()))
    failed = ({**vars(job), "reason": reason} for job, reason in results.list_failures())
    write_text(folder / "failures.csv", format_csv_records(failed))
    return folder


def write_experiment_page(results: ExperimentResults, out: Path) -> Path:
    """Write `page.html` with the tables, the figures and the runs behind every number; return its path."""
    counts = sorted(results.board.count_runs_by_state().items())
    failures = [
        {"data set": job.dataset, "row": job.row, "stage": job.stage, "seed": job.seed, "why": why}
        for job, why in results.list_failures()
    ]
    page = render_template(
        "bench/tables/templates/experiment.html",
        name=results.board.experiment.name,
        progress=", ".join(f"{count:,} runs {state}" for state, count in counts),
        tables=[(table, draw_table_figures(table)) for table in build_tables(results)],
        per_class=list(iterate_class_tables(results)),
        curves=write_curve_figures(results, out / "tables"),
        records={"Failed": failures, "Runs": list(results.iterate_runs())},
        describe_runs=_describe_runs,
    )
    write_text(out / "page.html", page)
    return out / "page.html"


def format_markdown(table: FilledTable) -> str:
    """Format a table as Markdown, with groups as separate lines and the paper's numbers below each row.

    Markdown allows a single line of headings. Columns that share a heading therefore form a separate table, with the
    shared heading in its first cell.
    """
    parts = [f"**{escape_markdown(table.title)}**"]
    for span, places in table.iterate_headings():
        rows = [[_emphasize(span), *(escape_markdown(table.columns[place].heading) for place in places)]]
        rows.append(["---", *["---:"] * len(places)])
        for group, lines in table.iterate_row_groups():
            if group:
                rows.append([_emphasize(group), *[""] * len(places)])
            for line in lines:
                cells = (line.cells[place] for place in places)
                rows.append(
                    [escape_markdown(line.name), *(f"**{cell}**" if cell.best else str(cell) for cell in cells)]
                )
                if line.paper and any(line.paper[place] for place in places):
                    texts = (line.paper[place] for place in places)
                    rows.append(["*paper*", *(_emphasize(text) for text in texts)])
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
    return "\n\n".join([*parts, "\n".join(f"- {escape_markdown(note)}" for note in table.notes)]) + "\n"


def _emphasize(text: str) -> str:
    """Return a text as Markdown in italics."""
    return f"*{escape_markdown(text)}*" if text else ""


def format_latex(table: FilledTable) -> str:
    """Format a table as a LaTeX `table` with booktabs, no wider than the text, with the paper's numbers in grey."""
    columns = len(table.columns)
    wide = columns >= MIN_WIDE_COLUMNS
    return render_template(
        "bench/tables/templates/table.tex",
        _LATEX_TEMPLATES,
        table=table,
        label=re.sub(r"[^\w.: -]", "-", table.name),
        columns=columns,
        wide=wide,
        environment_name="table*" if wide else "table",
    )


def _list_cell_records(table: FilledTable) -> list[dict[str, Any]]:
    """Return one record per cell, with its runs, seeds, test split and versions."""
    records = []
    for line in table.lines:
        papers = line.paper or ("",) * len(table.columns)
        for column, cell, paper in zip(table.columns, line.cells, papers, strict=True):
            number = cell if isinstance(cell, NumberCell) else None
            records.append(
                {
                    "group": line.group,
                    "row": line.name,
                    "span": column.span,
                    "column": column.heading,
                    "unit": column.unit,
                    "mean": cell.mean,
                    "std": number and number.std,
                    "seeds_done": f"{number.count} of {number.wanted}" if number else "",
                    "paper": paper,
                    "best": cell.best,
                    "against": "; ".join(_describe_rivals(cell, "")),
                    "seeds": " ".join(map(str, sorted({run["seed"] for run in cell.runs}))),
                    "test_hash": " ".join(sorted({str(run["split_hashes"].get("test")) for run in cell.runs})),
                    "versions": " ".join(sorted({json.dumps(run["versions"]) for run in cell.runs})),
                    "folders": " ".join(run["run"] for run in cell.runs),
                }
            )
    return records


def _describe_runs(cell: Cell) -> str:
    """Return the runs behind a cell and its comparisons, one per line."""
    lines = [
        f"{run['run']}, seed {run['seed']}, test split {run['split_hashes'].get('test')}, "
        + ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        for run in cell.runs
    ]
    return "\n".join(lines + _describe_rivals(cell, "against "))


def _describe_rivals(cell: Cell, before: str) -> list[str]:
    return (
        [f"{before}{name}: {result}" for name, result in cell.against.items()] if isinstance(cell, NumberCell) else []
    )


_LATEX_ESCAPES = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{character: f"${character}$" for character in "<>"},
        **{
            character: f"{{{character}}}" for character in "[*"
        },  # otherwise parsed as arguments of a preceding line break
        "~": r"\textasciitilde{}",
        "^": r"\^{}",
        "|": r"\textbar{}",
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "–": "--",
    }
)


def _escape_latex(value: Any) -> str:
    if isinstance(value, Markup):
        return value
    return escape_control_characters(" ".join(str(value).split("\n"))).translate(_LATEX_ESCAPES)


_LATEX_TEMPLATES = get_templates().overlay(
    block_start_string="<%",
    block_end_string="%>",
    variable_start_string="<<",
    variable_end_string=">>",
    comment_start_string="<#",
    comment_end_string="#>",
    autoescape=False,
    keep_trailing_newline=True,
    finalize=_escape_latex,
)
"""Template delimiters that do not conflict with LaTeX's braces and percent signs; values are escaped."""
