"""Tables as files: Markdown and CSV here, LaTeX in `latex`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toast_cli.bench.results import ExperimentResults
from toast_cli.bench.tables.build import build_tables
from toast_cli.bench.tables.latex import format_latex
from toast_cli.bench.tables.model import Cell, FilledTable, NumberCell, get_cell_runs
from toast_cli.utils.files import write_text


def write_tables(results: ExperimentResults, out: Path) -> Path:
    """Write every table of an experiment as Markdown, LaTeX and CSV, and its runs; returns the folder."""
    folder = out / "tables"
    for table in build_tables(results):
        write_text(folder / f"{table.name}.md", format_markdown(table))
        write_text(folder / f"{table.name}.tex", format_latex(table))
        write_text(folder / f"{table.name}.csv", format_csv_rows(_list_cell_rows(table)))
    write_text(folder / "runs.csv", format_csv_rows(results.runs()))
    failed = ({**vars(job), "reason": reason} for job, reason in results.failures())
    write_text(folder / "failures.csv", format_csv_rows(failed))
    return folder


def format_markdown(table: FilledTable) -> str:
    """Pipe tables, groups as lines of their own, the paper's numbers below each row.

    A pipe table has one line of headings: columns that share a heading are a table of their own, with it in the corner.
    """
    parts = [f"**{table.title}**"]
    for span, places in table.blocks():
        rows = [[f"*{span}*" if span else "", *(table.columns[place].heading for place in places)]]
        rows.append(["---", *["---:"] * len(places)])
        for group, lines in table.iterate_row_groups():
            if group:
                rows.append([f"*{group}*", *[""] * len(places)])
            for line in lines:
                rows.append([line.name, *(_format_cell(line.cells[place]) for place in places)])
                if line.paper and any(line.paper[place] for place in places):
                    texts = (line.paper[place] for place in places)
                    rows.append(["*paper*", *(f"*{text}*" if text else "" for text in texts)])
        parts.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in table.notes)]) + "\n"


def format_csv_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Mappings of the same keys as CSV with a heading; nothing where there are none."""
    rows = list(rows)
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _list_cell_rows(table: FilledTable) -> list[dict[str, Any]]:
    """One cell a line, with everything that it is made of."""
    rows = []
    for line in table.lines:
        papers: Sequence[str] = line.paper or [""] * len(table.columns)
        for column, cell, paper in zip(table.columns, line.cells, papers, strict=True):
            number, runs = cell if isinstance(cell, NumberCell) else None, get_cell_runs(cell)
            value = cell if isinstance(cell, str) else cell.mean if isinstance(cell, NumberCell) else cell.value
            rows.append(
                {
                    "group": line.group,
                    "row": line.name,
                    "span": column.span,
                    "column": column.heading,
                    "unit": column.unit,
                    "mean": value,
                    "std": "" if number is None or number.std is None else number.std,
                    "seeds_done": f"{number.count} of {number.wanted}" if number else "",
                    "paper": paper,
                    "best": bool(number and number.best),
                    "against": "; ".join(f"{name}: {found}" for name, found in number.against.items())
                    if number
                    else "",
                    "seeds": " ".join(map(str, sorted({run["seed"] for run in runs}))),
                    "test_hash": " ".join(sorted({str(run["split_hashes"].get("test")) for run in runs})),
                    "versions": " ".join(sorted({json.dumps(run["versions"]) for run in runs})),
                    "folders": " ".join(run["run"] for run in runs),
                }
            )
    return rows


def _format_cell(cell: Cell) -> str:
    return f"**{cell}**" if isinstance(cell, NumberCell) and cell.best else str(cell)
