"""Figures of a table: one per unit, with a panel per column and a line per row, and the paper's numbers."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from toast_cli.bench.tables.model import FilledTable, NumberCell, TableColumn
from toast_cli.utils.names import shorten_name
from toast_cli.visualize.figure_output import render_figure

MAX_PANELS_PER_ROW = 5
"""Panels in a row of a figure."""
MAX_LABEL_LENGTH = 40
"""Largest number of characters of a name in a figure."""


@dataclass(frozen=True)
class PageFigure:
    """A figure of the page: SVG, alternative text and caption."""

    svg: str
    alt: str
    caption: str


def draw_table_figures(table: FilledTable) -> list[PageFigure]:
    """Draw one figure for every unit that has numbers.

    Each column has its own axis, since rows are compared within a column. Rows are labelled by name, not by colour.
    """
    units: dict[str, list[int]] = {}
    for place, column in enumerate(table.columns):
        if any(isinstance(line.cells[place], NumberCell) for line in table.lines):
            units.setdefault(column.unit, []).append(place)
    return [_draw_figure(table, unit, places) for unit, places in units.items()]


def to_svg(figure: Figure, salt: str) -> str:
    """Return a figure as an SVG element with text; `salt` distinguishes its ids from those of other figures."""
    svg = render_figure(figure, "svg", salt=salt, text_as_paths=False).decode()
    return svg[svg.index("<svg") :]


def _draw_figure(table: FilledTable, unit: str, places: list[int]) -> PageFigure:
    lines = [line for line in table.lines if any(isinstance(line.cells[place], NumberCell) for place in places)]
    across = min(MAX_PANELS_PER_ROW, len(places))
    down = -(-len(places) // across)
    labels = [shorten_name(line.name, MAX_LABEL_LENGTH) for line in lines]
    margin = max(1.6, 0.14 * max(map(len, labels)) - 1.0)
    drawn = Figure(figsize=(2.4 * across + margin, down * (0.24 * len(lines) + 1.0)), layout="constrained")
    grid = drawn.subplots(down, across, sharey=True, squeeze=False)
    papers = False
    for axes, place in zip(grid.flat, places, strict=False):
        for order, line in enumerate(lines):
            cell, paper = line.cells[place], _parse_float(line.paper[place]) if line.paper else None
            if isinstance(cell, NumberCell):
                axes.errorbar(cell.mean, order, xerr=cell.std, fmt="o", color="C0", markersize=5, capsize=3)
            if paper is not None:
                papers = True
                axes.plot(paper, order, "D", color="black", markerfacecolor="none", markersize=5)
        axes.set_title(shorten_name(_format_title(table.columns[place]), MAX_LABEL_LENGTH), fontsize="small")
        axes.set_yticks(range(len(lines)), labels)
        axes.grid(axis="x", color="#ddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(places) :]:
        axes.set_visible(False)
    grid[0, 0].set_ylim(len(lines) - 0.5, -0.5)
    drawn.supxlabel(unit, fontsize="medium")
    svg = to_svg(drawn, f"{table.name} {unit}")
    named = ", ".join(_format_title(table.columns[place]) for place in places)
    alt = f"{table.title}: {unit}, by row, a panel for each of {named}; the table above contains the numbers."
    legend = "Dots: measured, with the standard deviation over seeds." + (" Diamonds: the paper." if papers else "")
    return PageFigure(svg, alt, f"{unit}. {legend}")


def _format_title(column: TableColumn) -> str:
    return f"{column.span}: {column.heading}" if column.span else column.heading


def _parse_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
