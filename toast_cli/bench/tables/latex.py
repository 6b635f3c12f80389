"""A table in LaTeX, as papers set it: booktabs, and turned headings where there are many columns."""

from __future__ import annotations

from collections.abc import Iterator

from toast_cli.bench.tables.model import Cell, Number, Table

MANY = 10
"""Columns from which a table is set as those of VTAB are: across the page, headings turned, small, spreads below."""


def latex(table: Table) -> str:
    """A `table` for booktabs, the best in bold, the paper's numbers in grey, notes below. No wider than the text."""
    wide = len(table.columns) >= MANY
    kind = "table*" if wide else "table"
    return "\n".join(
        [
            r"% In the preamble: \usepackage{booktabs,xcolor,adjustbox} (and graphicx, which adjustbox loads).",
            rf"\begin{{{kind}}}[t]\centering",
            rf"\caption{{{_tex(table.title)}}}",
            rf"\label{{tab:{table.name}}}",
            *([r"\scriptsize\setlength{\tabcolsep}{3pt}"] if wide else []),
            r"\begin{adjustbox}{max width=\textwidth}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            *_spans(table),
            " & ".join(["", *(_heading(column.heading, wide) for column in table.columns)]) + r" \\",
            r"\midrule",
            *_body(table, wide),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            r"\par\smallskip",
            rf"\parbox{{\linewidth}}{{\footnotesize {_tex(' '.join(table.notes))}}}",
            rf"\end{{{kind}}}",
            "",
        ]
    )


def _spans(table: Table) -> Iterator[str]:
    """Headings that columns share, and a rule below each."""
    if not any(column.span for column in table.columns):
        return
    blocks = list(table.blocks())
    cells = (rf"\multicolumn{{{len(places)}}}{{c}}{{{_tex(span)}}}" for span, places in blocks)
    yield " & ".join(["", *cells]) + r" \\"
    # The first column holds the rows' names, and LaTeX counts from 1.
    yield "".join(rf"\cmidrule(lr){{{places[0] + 2}-{places[-1] + 2}}}" for span, places in blocks if span)


def _heading(text: str, turned: bool) -> str:
    return rf"\rotatebox{{90}}{{{_tex(text)}}}" if turned else _tex(text)


def _body(table: Table, wide: bool) -> Iterator[str]:
    for at, (group, lines) in enumerate(table.grouped()):
        if group:
            yield from [r"\midrule"] if at else []
            yield rf"\multicolumn{{{len(table.columns) + 1}}}{{l}}{{\textit{{{_tex(group)}}}}} \\"
        for line in lines:
            yield " & ".join([_tex(line.name), *(_cell(cell, wide) for cell in line.cells)]) + r" \\"
            if wide and any(isinstance(cell, Number) and (cell.spread or cell.part) for cell in line.cells):
                yield " & ".join(["", *(_below(cell) for cell in line.cells)]) + r" \\"
            if any(line.paper):
                texts = (rf"\textcolor{{gray}}{{{_tex(text)}}}" if text else "" for text in ("paper", *line.paper))
                yield " & ".join(texts) + r" \\"


def _cell(cell: Cell, wide: bool) -> str:
    text = _tex(cell.middle if wide and isinstance(cell, Number) else str(cell))
    return rf"\textbf{{{text}}}" if isinstance(cell, Number) and cell.best else text


def _below(cell: Cell) -> str:
    """A number's spread, and of how many seeds it is, on a line of its own."""
    if not isinstance(cell, Number):
        return ""
    text = (f"±{cell.spread}" if cell.spread else "") + cell.part
    return rf"{{\tiny {_tex(text)}}}" if text else ""


_SPECIAL = {
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "^": r"\^{}",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    "\\": r"\textbackslash{}",
    # Both would be arguments of the line break before them.
    "[": "{[}",
    "*": "{*}",
}


def _tex(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)
