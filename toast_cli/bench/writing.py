"""Tables as files: Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toast_cli.bench.table import Cell, Number, Results, Table
from toast_cli.storage.atomic import write_text


def write_all(results: Results, out: Path) -> Path:
    """Write every table of an experiment as Markdown, LaTeX and CSV, and its runs; returns the folder."""
    folder = out / "tables"
    for table in results.tables():
        write_text(folder / f"{table.name}.md", markdown(table))
        write_text(folder / f"{table.name}.tex", latex(table))
        write_text(folder / f"{table.name}.csv", as_csv(_rows(table)))
    write_text(folder / "runs.csv", as_csv(results.runs()))
    failed = ({**vars(job), "reason": reason} for job, reason in results.failures())
    write_text(folder / "failures.csv", as_csv(failed))
    return folder


def markdown(table: Table) -> str:
    """A pipe table, groups as lines of their own, the paper's numbers below each row."""
    width = len(table.columns) + 1
    rows = [["", *table.columns], ["---", *["---:"] * len(table.columns)]]
    group = ""
    for line in table.lines:
        if line.group != group:
            group = line.group
            rows.append([f"*{group}*", *[""] * (width - 1)])
        rows.append([line.name, *(_bold(cell, "**{}**") for cell in line.cells)])
        if line.paper:
            rows.append(["*paper*", *(f"*{text}*" if text else "" for text in line.paper)])
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return f"**{table.title}**\n\n{body}\n\n" + "\n".join(table.notes) + "\n"


def latex(table: Table) -> str:
    """A tabular for booktabs, spans above the columns, the best in bold, the paper's numbers in grey."""
    lines = [
        r"% needs \usepackage{booktabs,xcolor}",
        r"\begin{table}\centering",
        rf"\caption{{{_tex(table.title)} {_tex(' '.join(table.notes))}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
    ]
    if table.spans:
        spans = " & ".join(rf"\multicolumn{{{count}}}{{c}}{{{_tex(name)}}}" for name, count in table.spans.items())
        lines.append(rf" & {spans} \\")
    lines += [" & ".join(["", *map(_tex, table.columns)]) + r" \\", r"\midrule"]
    group = ""
    for line in table.lines:
        if line.group != group:
            group = line.group
            lines.append(rf"\multicolumn{{{len(table.columns) + 1}}}{{l}}{{\textit{{{_tex(group)}}}}} \\")
        cells = [_bold(cell, r"\textbf{{{}}}", _tex) for cell in line.cells]
        lines.append(" & ".join([_tex(line.name), *cells]) + r" \\")
        if line.paper:
            grey = [rf"\textcolor{{gray}}{{{_tex(text)}}}" if text else "" for text in ("paper", *line.paper)]
            lines.append(" & ".join(grey) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Mappings of the same keys as CSV with a heading; nothing where there are none."""
    rows = list(rows)
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _rows(table: Table) -> list[dict[str, Any]]:
    """One number a line, with everything that it is made of."""
    rows = []
    for line in table.lines:
        papers: Sequence[str] = line.paper or [""] * len(table.columns)
        for column, cell, paper in zip(table.columns, line.cells, papers, strict=True):
            number = cell if isinstance(cell, Number) else None
            rows.append(
                {
                    "group": line.group,
                    "row": line.name,
                    "column": column,
                    "mean": number.mean if number else cell,
                    "std": number.std if number else "",
                    "runs": f"{number.count} of {number.wanted}" if number else "",
                    "paper": paper,
                    "best": bool(number and number.best),
                    "against": "; ".join(f"{name}: {found}" for name, found in number.against.items())
                    if number
                    else "",
                    "seeds": " ".join(str(run["seed"]) for run in number.runs) if number else "",
                    "test_hash": " ".join(sorted({str(run["split_hashes"].get("test")) for run in number.runs}))
                    if number
                    else "",
                    "toast": " ".join(sorted({run["versions"]["toast"] for run in number.runs})) if number else "",
                    "folders": " ".join(run["run"] for run in number.runs) if number else "",
                }
            )
    return rows


def _bold(cell: Cell, form: str, escape: Any = str) -> str:
    text = escape(str(cell))
    return form.format(text) if isinstance(cell, Number) and cell.best else text


_SPECIAL = {
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
}
_SPECIAL |= {
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "^": r"\^{}",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    "\\": r"\textbackslash{}",
}


def _tex(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)
