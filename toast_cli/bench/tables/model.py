"""Tables independent of a format: cells with their runs, rows, columns, and blocks of columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar

from toast_cli.bench.tables.significance import PairedTestResult


@dataclass(frozen=True)
class NumberCell:
    """A cell with a mean over seeds, in its column's unit.

    `std` is the sample standard deviation over seeds, None for a single seed. The mean is over `count` of the `wanted`
    seeds. `runs` are the records behind it, `against` the results of the paired tests by name of the other row.
    """

    mean: float
    std: float | None
    count: int
    wanted: int
    digits: int
    runs: tuple[Mapping[str, Any], ...] = ()
    best: bool = False
    against: Mapping[str, PairedTestResult] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ± ".join(filter(None, (self.middle, self.spread))) + self.part

    @property
    def middle(self) -> str:
        """The mean, formatted."""
        return f"{self.mean:.{self.digits}f}"

    @property
    def spread(self) -> str:
        """The standard deviation, formatted; empty for a single seed."""
        return "" if self.std is None else f"{self.std:.{self.digits}f}"

    @property
    def part(self) -> str:
        """The number of seeds, if some are missing."""
        return "" if self.count == self.wanted else f" ({self.count} of {self.wanted})"

    @property
    def rest(self) -> str:
        """The text below the mean in tables that are too wide to have it beside the mean."""
        return (f"±{self.spread}" if self.spread else "") + self.part


@dataclass(frozen=True)
class PlainCell:
    """A cell without a standard deviation: parameters or FLOPs, as a number and as text, with its runs."""

    mean: float | str
    middle: str
    runs: tuple[Mapping[str, Any], ...] = ()
    rest: ClassVar[str] = ""
    best: ClassVar[bool] = False

    def __str__(self) -> str:
        return self.middle


Cell = NumberCell | PlainCell
EMPTY_CELL = PlainCell("–", "–")


@dataclass(frozen=True)
class TableColumn:
    """A column: its heading, the heading that it shares with its neighbours (or an empty text), its content and unit.

    `dataset` restricts the column to a data set; if None, `shows` determines the data sets.
    """

    heading: str
    span: str
    shows: str
    unit: str
    dataset: str | None = None


@dataclass(frozen=True)
class FilledRow:
    """A row: its cells, and the paper's numbers as text, one per column, or an empty tuple."""

    name: str
    group: str
    cells: tuple[Cell, ...]
    paper: tuple[str, ...]


@dataclass(frozen=True)
class FilledTable:
    """A table filled with the results of the finished runs."""

    name: str
    title: str
    columns: tuple[TableColumn, ...]
    lines: tuple[FilledRow, ...]
    notes: tuple[str, ...]

    @property
    def has_spans(self) -> bool:
        """Whether columns share a heading."""
        return any(column.span for column in self.columns)

    def iterate_headings(self) -> Iterator[tuple[str, list[int]]]:
        """Yield each shared heading with the indices of its columns."""
        for span, places in groupby(range(len(self.columns)), key=lambda place: self.columns[place].span):
            yield span, list(places)

    def iterate_row_groups(self) -> Iterator[tuple[str, list[FilledRow]]]:
        """Yield the heading of each group (or an empty text) with its rows."""
        for group, lines in groupby(self.lines, key=lambda line: line.group):
            yield group, list(lines)
