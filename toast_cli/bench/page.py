"""One HTML page of an experiment that needs nothing beside it: tables, figures, and the run behind every number."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from toast_cli.bench.table import Number, Results, Table
from toast_cli.storage.atomic import write_text

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
table { display: block; overflow-x: auto }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
tr.paper td { color: #888; font-size: .88em } tr.group td { font-style: italic } td[title] { cursor: help }
.note { color: #555; margin: .1rem 0 } svg { max-width: 100%; height: auto } code { font-size: .9em }
"""


def write_page(results: Results, out: Path) -> Path:
    """Write `page.html`; returns its path."""
    experiment = results.board.experiment
    parts = [f"<h1>{escape(experiment.name)}</h1>", f"<p>{_progress(results)}</p>"]
    for table in results.tables():
        parts += [
            f"<h2>{escape(table.title)}</h2>",
            _table(table),
            *(f'<p class="note">{escape(n)}</p>' for n in table.notes),
        ]
        parts.append(figure(table))
    failures = [{"data set": job.dataset, "row": job.row, "stage": job.stage, "seed": job.seed, "why": why}
                for job, why in results.failures()]  # fmt: skip
    for title, rows in (("Failed", failures), ("Runs", list(results.runs()))):
        if rows:
            parts += [f"<h2>{title}</h2>", _listing(rows)]
    head = f'<meta charset="utf-8"><title>{escape(experiment.name)}</title><style>{STYLE}</style>'
    path = out / "page.html"
    write_text(path, f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n")
    return path


def figure(table: Table) -> str:
    """Bars of what was measured with its spread, and the paper's numbers as marks, as SVG; empty where nothing was."""
    columns = [
        place
        for place in range(len(table.columns))
        if any(isinstance(line.cells[place], Number) for line in table.lines)
    ]
    lines = [line for line in table.lines if any(isinstance(line.cells[place], Number) for place in columns)]
    if not columns:
        return ""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(figsize=(max(5.0, 0.28 * len(columns) * len(lines) + 2), 3.2), layout="constrained")
    width = 0.8 / len(lines)
    for order, line in enumerate(lines):
        for at, place in enumerate(columns):
            x, cell = at + (order - (len(lines) - 1) / 2) * width, line.cells[place]
            color = f"C{order % 10}"
            if isinstance(cell, Number):
                label = (
                    line.name
                    if at == next(i for i, p in enumerate(columns) if isinstance(line.cells[p], Number))
                    else None
                )
                axes.bar(x, cell.mean, width * 0.9, yerr=cell.std, color=color, label=label, error_kw={"linewidth": 1})
            if line.paper and (paper := _number(line.paper[place])) is not None:
                axes.plot([x - width / 2, x + width / 2], [paper, paper], color="black", linewidth=1.5)
    axes.set_xticks(range(len(columns)), [table.columns[place] for place in columns], rotation=30, ha="right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="small", ncols=min(4, len(lines)), loc="upper left", bbox_to_anchor=(0, 1.22), frameon=False)
    text = io.StringIO()
    # No date in the file, and ids that do not change: the same runs give the same page.
    with matplotlib.rc_context({"svg.hashsalt": table.name}):
        drawn.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(drawn)
    svg = text.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}<figcaption class='note'>Black marks: the paper.</figcaption></figure>"


def _table(table: Table) -> str:
    rows = []
    if table.spans:
        spans = "".join(f'<th colspan="{count}">{escape(name)}</th>' for name, count in table.spans.items())
        rows.append(f"<tr><th></th>{spans}</tr>")
    rows.append("<tr><th></th>" + "".join(f"<th>{escape(column)}</th>" for column in table.columns) + "</tr>")
    group = ""
    for line in table.lines:
        if line.group != group:
            group = line.group
            rows.append(f'<tr class="group"><td colspan="{len(table.columns) + 1}">{escape(group)}</td></tr>')
        rows.append(f"<tr><td>{escape(line.name)}</td>{''.join(map(_cell, line.cells))}</tr>")
        if line.paper:
            papers = "".join(f"<td>{escape(text)}</td>" for text in line.paper)
            rows.append(f'<tr class="paper"><td>paper</td>{papers}</tr>')
    return f"<table>{''.join(rows)}</table>"


def _cell(cell: Any) -> str:
    text = escape(str(cell))
    if not isinstance(cell, Number):
        return f"<td>{text}</td>"
    told = [
        f"{run['run']}, seed {run['seed']}, test split {run['split_hashes'].get('test')}, "
        f"toast {run['versions']['toast']}"
        for run in cell.runs
    ]
    told += [f"against {name}: {found}" for name, found in cell.against.items()]
    return f'<td title="{escape(chr(10).join(told))}">{f"<b>{text}</b>" if cell.best else text}</td>'


def _listing(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row.values()) + "</tr>" for row in rows)
    return f"<table><tr>{heads}</tr>{body}</table>"


def _progress(results: Results) -> str:
    counts = results.board.counts()
    return escape(", ".join(f"{count:,} runs {state}" for state, count in sorted(counts.items())))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
