"""One HTML page of an experiment that needs nothing beside it: tables, figures, and the run behind every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from toast_cli.bench.results import ExperimentResults
from toast_cli.bench.tables.build import build_tables
from toast_cli.bench.tables.curves import write_curve_figures
from toast_cli.bench.tables.figures import draw_table_figures
from toast_cli.bench.tables.model import Cell, FilledTable, NumberCell, get_cell_runs
from toast_cli.utils.files import write_text

PAGE_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
table { display: block; overflow-x: auto }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th[colspan] { text-align: center; border-left: 1px solid #ddd } figure { margin: 1.5rem 0 }
th:first-child, td:first-child { text-align: left }
tr.paper td { color: #888; font-size: .88em } tr.group td { font-style: italic } td[title] { cursor: help }
.note { color: #555; margin: .1rem 0 } svg { max-width: 100%; height: auto } code { font-size: .9em }
"""


def write_experiment_page(results: ExperimentResults, out: Path) -> Path:
    """Write `page.html`; returns its path."""
    experiment = results.board.experiment
    parts = [f"<h1>{escape(experiment.name)}</h1>", f"<p>{_format_progress(results)}</p>"]
    for table in build_tables(results):
        parts += [
            f"<h2>{escape(table.title)}</h2>",
            _format_table(table),
            *(f'<p class="note">{escape(n)}</p>' for n in table.notes),
        ]
        parts += draw_table_figures(table)
    parts += write_curve_figures(results, out / "tables")
    failures = [{"data set": job.dataset, "row": job.row, "stage": job.stage, "seed": job.seed, "why": why}
                for job, why in results.failures()]  # fmt: skip
    for title, rows in (("Failed", failures), ("Runs", list(results.runs()))):
        if rows:
            parts += [f"<h2>{title}</h2>", _format_record_table(rows)]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{escape(experiment.name)}</title><style>{PAGE_STYLE}</style>"
    path = out / "page.html"
    write_text(path, f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n")
    return path


def _format_table(table: FilledTable) -> str:
    rows = []
    if any(column.span for column in table.columns):
        spans = "".join(f'<th colspan="{len(places)}">{escape(span)}</th>' for span, places in table.blocks())
        rows.append(f"<tr><th></th>{spans}</tr>")
    rows.append("<tr><th></th>" + "".join(f"<th>{escape(column.heading)}</th>" for column in table.columns) + "</tr>")
    for group, lines in table.iterate_row_groups():
        if group:
            rows.append(f'<tr class="group"><td colspan="{len(table.columns) + 1}">{escape(group)}</td></tr>')
        for line in lines:
            rows.append(f"<tr><td>{escape(line.name)}</td>{''.join(map(_format_cell, line.cells))}</tr>")
            if any(line.paper):
                papers = "".join(f"<td>{escape(text)}</td>" for text in line.paper)
                rows.append(f'<tr class="paper"><td>paper</td>{papers}</tr>')
    return f"<table>{''.join(rows)}</table>"


def _format_cell(cell: Cell) -> str:
    text = escape(str(cell))
    if not get_cell_runs(cell):
        return f"<td>{text}</td>"
    told = [
        f"{run['run']}, seed {run['seed']}, test split {run['split_hashes'].get('test')}, "
        + ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        for run in get_cell_runs(cell)
    ]
    best = isinstance(cell, NumberCell) and cell.best
    if isinstance(cell, NumberCell):
        told += [f"against {name}: {found}" for name, found in cell.against.items()]
    return f'<td title="{escape(chr(10).join(told))}">{f"<b>{text}</b>" if best else text}</td>'


def _format_record_table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row.values()) + "</tr>" for row in rows)
    return f"<table><tr>{heads}</tr>{body}</table>"


def _format_progress(results: ExperimentResults) -> str:
    counts = results.board.counts()
    return escape(", ".join(f"{count:,} runs {state}" for state, count in sorted(counts.items())))
