"""Tables in the paper's layout: measured numbers with their runs, and the paper's numbers below them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from toast_cli.bench.results import ExperimentResults
from toast_cli.bench.suite import TableLayout
from toast_cli.bench.tables.aggregate import AggregatedCell, ResultAggregator
from toast_cli.bench.tables.metrics import (
    TASK_METRICS,
    TableMetric,
    format_parameter_count,
    get_decisive_metrics,
    get_registered_metric,
    select_metric,
)
from toast_cli.bench.tables.model import EMPTY_CELL, Cell, FilledRow, FilledTable, NumberCell, PlainCell, TableColumn
from toast_cli.bench.tables.notes import format_table_notes
from toast_cli.bench.tables.significance import SIGNIFICANCE_LEVEL, run_paired_test

COLUMN_METRICS = {
    "parameters": TableMetric("parameters", "trained parameters"),
    "flops": TableMetric("flops", "plain passes", higher=False),
    "minutes": TableMetric("minutes", "minutes", higher=False, scale=1.0),
    "judge": TableMetric("score", "score from 1 to 10", scale=1.0),
    "attention": TableMetric("attention", "share of attention on the object, %"),
}


def build_tables(results: ExperimentResults) -> list[FilledTable]:
    """Return the tables of an experiment's suite, filled with the results of the runs that have finished."""
    measures = ResultAggregator(results)
    return [
        _TableBuilder(measures, layout).build_table(name)
        for name, layout in results.board.experiment.suite.list_tables().items()
    ]


@dataclass(frozen=True)
class _TableBuilder:
    measures: ResultAggregator
    layout: TableLayout

    def build_table(self, name: str) -> FilledTable:
        placed = list(self._iterate_columns())
        columns = [column for column, _ in placed]
        cells = [self._build_column_cells(column, self._count_paper_digits(at)) for column, at in placed]
        papers = [[""] * len(self.layout.rows) if at is None else self._format_paper_numbers(at) for _, at in placed]
        lines = tuple(
            FilledRow(
                heading,
                group,
                tuple(column[place] for column in cells),
                tuple(paper[place] for paper in papers) if any(paper[place] for paper in papers) else (),
            )
            for place, (heading, group) in enumerate(zip(self.layout.rows, self._list_row_groups(), strict=True))
        )
        notes = tuple(format_table_notes(self.measures, self.layout, columns, lines))
        return FilledTable(name, self.layout.title, tuple(columns), lines, notes)

    def _iterate_columns(self) -> Iterator[tuple[TableColumn, int | None]]:
        """Yield every column with its index in the layout.

        A column of attention measured on several data sets becomes one column per data set, without an index, since
        shares in a box and in an outline cannot be averaged.
        """
        spans = [name for name, count in self.layout.spans.items() for _ in range(count)]
        for at, (heading, shows) in enumerate(self.layout.columns.items()):
            span, unit = spans[at] if spans else "", self._select_column_metric(shows).words
            datasets = self._list_attention_datasets(shows) if shows.startswith("attention:") else []
            if len(datasets) > 1:
                for dataset in datasets:
                    yield TableColumn(dataset, heading, shows, unit, dataset), None
            else:
                yield TableColumn(heading, span, shows, unit, datasets[0] if datasets else None), at

    def _list_attention_datasets(self, shows: str) -> list[str]:
        """Return the data sets on which attention was measured."""
        results, which = self.measures.results, shows.partition(":")[2]
        measured = {
            dataset
            for row in self.layout.rows.values()
            for dataset in results.list_datasets(row.run or "")
            for record in results.get_records(dataset, row.run or "").values()
            if which in (record["attention"] or {})
        }
        return [dataset for dataset in results.board.experiment.suite.datasets if dataset in measured]

    def _select_column_metric(self, shows: str) -> TableMetric:
        """Return the metric of a column, from a finished run; the first task metric if there is no such run."""
        kind = shows.partition(":")[0]
        if kind == "metric":
            return get_registered_metric(shows.partition(":")[2])
        if kind in COLUMN_METRICS:
            return COLUMN_METRICS[kind]
        results = self.measures.results
        for row in self.layout.rows.values():
            for dataset in results.list_datasets(row.run or ""):
                for record in results.get_records(dataset, row.run or "").values():
                    if shows in (dataset, "average", "validation"):
                        return select_metric(get_decisive_metrics(record))
        return TASK_METRICS[0]

    def _list_row_groups(self) -> list[str]:
        """Return the group of every row: its own, or that of the row above."""
        groups = [""]
        for row in self.layout.rows.values():
            groups.append(row.group or groups[-1])
        return groups[1:]

    def _format_paper_numbers(self, at: int) -> list[str]:
        """Return the paper's numbers in a column, with the digits of the most precise one."""
        values = [row.paper[at] if row.paper else None for row in self.layout.rows.values()]
        digits = max((_count_decimals(value) for value in values), default=0)
        return [
            "" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)
            for value in values
        ]

    def _count_paper_digits(self, at: int | None) -> int:
        """Return the number of decimals in the paper's column."""
        return (
            0
            if at is None
            else max(_count_decimals(row.paper[at]) if row.paper else 0 for row in self.layout.rows.values())
        )

    def _build_column_cells(self, column: TableColumn, digits: int) -> list[Cell]:
        """Return the cells of a column from top to bottom, with the best row of each group marked."""
        rows = [row.run for row in self.layout.rows.values()]
        if column.shows in ("parameters", "flops"):
            return [EMPTY_CELL if run is None else self._compute_mean_size(run, column.shows) for run in rows]
        names, groups = list(self.layout.rows), self._list_row_groups()
        found = {
            name: (group, values)
            for name, run, group in zip(names, rows, groups, strict=True)
            if run is not None and (values := self.measures.aggregate_by_seed(run, column)) is not None
        }
        metric = self._select_column_metric(column.shows)
        digits = max(digits, metric.digits)
        if column.shows == "minutes" and any(_compute_mean(values) < 1 for _, values in found.values()):
            digits = 2
        return [
            self._build_number_cell(column, metric, digits, found[name][1], _find_rivals(name, found))
            if name in found
            else EMPTY_CELL
            for name in names
        ]

    def _build_number_cell(
        self,
        column: TableColumn,
        metric: TableMetric,
        digits: int,
        found: AggregatedCell,
        rivals: Mapping[str, AggregatedCell],
    ) -> NumberCell:
        """Return a row's cell, compared with its rivals if the column's numbers can be tested."""
        values, expected = found.sample.values.values(), len(self.measures.results.board.experiment.final_seeds)
        testable = column.shows.partition(":")[0] not in ("minutes", "validation", "attention")
        against = (
            {name: run_paired_test(found.sample, rival.sample) for name, rival in rivals.items()} if testable else {}
        )
        leads = all(
            metric.sign * _compute_mean(found) > metric.sign * _compute_mean(rival) for rival in rivals.values()
        )
        clear = all(comparison.p is not None and comparison.p < SIGNIFICANCE_LEVEL for comparison in against.values())
        return NumberCell(
            _compute_mean(found),
            statistics.stdev(values) if len(values) > 1 else None,
            len(values),
            expected,
            digits,
            found.runs,
            bool(against) and leads and clear,
            against,
        )

    def _compute_mean_size(self, run: str, shows: str) -> Cell:
        """Return a row's parameters or FLOPs, averaged over its data sets, whose heads differ in size."""
        records = self.measures.list_records(run)
        if not records:
            return EMPTY_CELL
        if shows == "parameters":
            count = statistics.fmean(record["trained_parameters"] for record in records)
            return PlainCell(count, format_parameter_count(count), tuple(records))
        passes = statistics.fmean(record["flops"] / record["flops_plain"] for record in records)
        return PlainCell(passes, f"{passes:.2f} ×", tuple(records))


def _find_rivals(name: str, found: Mapping[str, tuple[str, AggregatedCell]]) -> dict[str, AggregatedCell]:
    """Return the other rows of a row's group."""
    return {other: values for other, (group, values) in found.items() if other != name and group == found[name][0]}


def _compute_mean(found: AggregatedCell) -> float:
    return statistics.fmean(found.sample.values.values())


def _count_decimals(value: float | str | None) -> int:
    return len(repr(value).partition(".")[2]) if isinstance(value, float) else 0
