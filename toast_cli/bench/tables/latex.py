"""A table in LaTeX, as papers set it: booktabs, and turned headings where there are many columns."""

from __future__ import annotations

from collections.abc import Iterator

from toast_cli.bench.tables.model import Cell, FilledTable, NumberCell

MIN_WIDE_COLUMNS = 10
"""Columns from which a table is set as those of VTAB are: across the page, headings turned, small, spreads below."""


def format_latex(table: FilledTable) -> str:
    """A `table` for booktabs, the best in bold, the paper's numbers in grey, notes below. No wider than the text."""
    wide = len(table.columns) >= MIN_WIDE_COLUMNS
    kind = "table*" if wide else "table"
    return "\n".join(
        [
            r"% In the preamble: \usepackage{booktabs,xcolor,adjustbox} (and graphicx, which adjustbox loads).",
            rf"\begin{{{kind}}}[t]\centering",
            rf"\caption{{{_escape_latex(table.title)}}}",
            rf"\label{{tab:{table.name}}}",
            *([r"\scriptsize\setlength{\tabcolsep}{3pt}"] if wide else []),
            r"\begin{adjustbox}{max width=\textwidth}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            *_format_spans(table),
            " & ".join(["", *(_format_heading(column.heading, wide) for column in table.columns)]) + r" \\",
            r"\midrule",
            *_format_body(table, wide),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            r"\par\smallskip",
            rf"\parbox{{\linewidth}}{{\footnotesize {_escape_latex(' '.join(table.notes))}}}",
            rf"\end{{{kind}}}",
            "",
        ]
    )


def _format_spans(table: FilledTable) -> Iterator[str]:
    """Headings that columns share, and a rule below each."""
    if not any(column.span for column in table.columns):
        return
    blocks = list(table.blocks())
    cells = (rf"\multicolumn{{{len(places)}}}{{c}}{{{_escape_latex(span)}}}" for span, places in blocks)
    yield " & ".join(["", *cells]) + r" \\"
    # The first column holds the rows' names, and LaTeX counts from 1.
    yield "".join(rf"\cmidrule(lr){{{places[0] + 2}-{places[-1] + 2}}}" for span, places in blocks if span)


def _format_heading(text: str, turned: bool) -> str:
    return rf"\rotatebox{{90}}{{{_escape_latex(text)}}}" if turned else _escape_latex(text)


def _format_body(table: FilledTable, wide: bool) -> Iterator[str]:
    for at, (group, lines) in enumerate(table.iterate_row_groups()):
        if group:
            yield from [r"\midrule"] if at else []
            yield rf"\multicolumn{{{len(table.columns) + 1}}}{{l}}{{\textit{{{_escape_latex(group)}}}}} \\"
        for line in lines:
            yield " & ".join([_escape_latex(line.name), *(_format_cell(cell, wide) for cell in line.cells)]) + r" \\"
            if wide and any(isinstance(cell, NumberCell) and (cell.spread or cell.part) for cell in line.cells):
                yield " & ".join(["", *(_format_spread(cell) for cell in line.cells)]) + r" \\"
            if any(line.paper):
                texts = (
                    rf"\textcolor{{gray}}{{{_escape_latex(text)}}}" if text else "" for text in ("paper", *line.paper)
                )
                yield " & ".join(texts) + r" \\"


def _format_cell(cell: Cell, wide: bool) -> str:
    text = _escape_latex(cell.middle if wide and isinstance(cell, NumberCell) else str(cell))
    return rf"\textbf{{{text}}}" if isinstance(cell, NumberCell) and cell.best else text


def _format_spread(cell: Cell) -> str:
    """A number's spread, and of how many seeds it is, on a line of its own."""
    if not isinstance(cell, NumberCell):
        return ""
    text = (f"±{cell.spread}" if cell.spread else "") + cell.part
    return rf"{{\tiny {_escape_latex(text)}}}" if text else ""


_LATEX_ESCAPES = {
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


def _escape_latex(text: str) -> str:
    return "".join(_LATEX_ESCAPES.get(character, character) for character in text)
