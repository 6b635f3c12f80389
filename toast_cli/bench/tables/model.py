"""What a table is made of, before anything is drawn: numbers with their runs, rows, columns, and blocks of columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar

from toast_cli.bench.tables.significance import PairedTestResult


@dataclass(frozen=True)
class NumberCell:
    """One cell: a mean over seeds in its column's unit, its spread, and how many of the wanted seeds are in it.

    `std` is the sample standard deviation over seeds; None: there is one seed. `runs` are the records that it is made
    of, `against` how it compares with every other row, by name.
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
        """The mean alone."""
        return f"{self.mean:.{self.digits}f}"

    @property
    def spread(self) -> str:
        """The spread alone, empty where there is none."""
        return "" if self.std is None else f"{self.std:.{self.digits}f}"

    @property
    def part(self) -> str:
        """Of how many seeds it is, where some are wanting."""
        return "" if self.count == self.wanted else f" ({self.count} of {self.wanted})"

    @property
    def rest(self) -> str:
        """What stands below the mean where it has no room beside it."""
        return (f"±{self.spread}" if self.spread else "") + self.part


@dataclass(frozen=True)
class PlainCell:
    """One cell without a spread: what a row costs, as a number of its column's unit and in words, with its runs."""

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
    """One column: its heading, the heading that it shares with its neighbours (empty: none), what it shows, its unit.

    `dataset` is the data set that it is restricted to; None: what it shows says it.
    """

    heading: str
    span: str
    shows: str
    unit: str
    dataset: str | None = None


@dataclass(frozen=True)
class FilledRow:
    """One row: what was measured, and what the paper has, a text a column (empty where it has nothing), if anything."""

    name: str
    group: str
    cells: tuple[Cell, ...]
    paper: tuple[str, ...]


@dataclass(frozen=True)
class FilledTable:
    """A table of the paper, filled as far as the runs have come."""

    name: str
    title: str
    columns: tuple[TableColumn, ...]
    lines: tuple[FilledRow, ...]
    notes: tuple[str, ...]

    @property
    def has_spans(self) -> bool:
        """Whether columns share a heading."""
        return any(column.span for column in self.columns)

    def blocks(self) -> Iterator[tuple[str, list[int]]]:
        """Neighbouring columns that share a heading, by place, and that heading."""
        for span, places in groupby(range(len(self.columns)), key=lambda place: self.columns[place].span):
            yield span, list(places)

    def iterate_row_groups(self) -> Iterator[tuple[str, list[FilledRow]]]:
        """Neighbouring rows of one group, and its heading (empty: none)."""
        for group, lines in groupby(self.lines, key=lambda line: line.group):
            yield group, list(lines)
