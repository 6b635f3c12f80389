"""Tables in the paper's layout: what was measured, the paper's numbers below, and which run each number is from."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toast_cli.bench.board import Board
from toast_cli.bench.jobs import Job
from toast_cli.bench.numbers import Metric, metric_of
from toast_cli.bench.significance import LEVEL, Comparison, Sample, compare
from toast_cli.bench.standing import Standing
from toast_cli.bench.suite import PLAIN, Layout, TableRow
from toast_cli.storage.run_folder import ANSWERS

NOTHING = "–"


@dataclass(frozen=True)
class Number:
    """One cell: a mean over seeds in the table's unit, its spread, and how many of the wanted runs are in it.

    `runs` are the records that it is made of, `against` how it compares with every other row, by name.
    """

    mean: float
    std: float | None
    count: int
    wanted: int
    digits: int
    runs: tuple[Mapping[str, Any], ...] = ()
    best: bool = False
    against: Mapping[str, Comparison] = field(default_factory=dict)

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.{self.digits}f}"
        part = "" if self.count == self.wanted else f" ({self.count} of {self.wanted})"
        return f"{self.mean:.{self.digits}f}{spread}{part}"


Cell = Number | str


@dataclass(frozen=True)
class Line:
    """One row: what was measured, and what the paper has, a text a column (empty where it has nothing)."""

    name: str
    group: str
    cells: tuple[Cell, ...]
    paper: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table of the paper, filled as far as the runs have come."""

    name: str
    title: str
    columns: tuple[str, ...]
    spans: Mapping[str, int]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


class Results:
    """Every final run of an experiment, as tables need them."""

    def __init__(self, board: Board, out: Path) -> None:
        self.board, self.out = board, out
        self.finals: dict[tuple[str, str], dict[Job, Standing]] = {}
        for dataset, row in board.experiment.cells:
            standings = board.stage(dataset, row, "final") or {}
            self.finals[dataset, row] = {job: standing.seen_from(out) for job, standing in standings.items()}

    def records(self, dataset: str, row: str) -> dict[int, Mapping[str, Any]]:
        """What the finished final runs of a cell left, by seed."""
        standings = self.finals.get((dataset, row), {})
        return {job.seed: standing.record for job, standing in standings.items() if standing.state == "done"}

    def failures(self) -> list[tuple[Job, str]]:
        """Every failed run, of searches too, with its reason."""
        found = []
        for where in self.board.stages():
            for job, standing in (self.board.stage(*where) or {}).items():
                if standing.state == "failed":
                    found.append((job, standing.reason))
        return found

    def wanted(self) -> int:
        """Final runs of a cell."""
        return len(self.board.experiment.seeds or self.board.experiment.suite.seeds)

    def runs(self) -> Iterator[dict[str, Any]]:
        """One flat mapping a final run: where it lies and what decided it."""
        for (dataset, row), standings in self.finals.items():
            for job, standing in standings.items():
                if standing.state != "done":
                    continue
                record = standing.record
                judged = _judged(record)
                metric = metric_of(judged)
                yield {
                    "dataset": dataset,
                    "row": row,
                    "seed": job.seed,
                    "metric": metric.name,
                    "value": judged[metric.name],
                    "split": "validation" if record["test"] is None else "test",
                    **{f"{name}_hash": record["split_hashes"].get(name) for name in ("train", "val", "test")},
                    "hyper_parameters": json.dumps(record["params"]),
                    "epoch": record["selected_epoch"],
                    "trained_parameters": record["trained_parameters"],
                    "flops": record["flops"],
                    "seconds": round(record["seconds"], 1),
                    "device": record["device"],
                    "precision": record["precision"],
                    "versions": json.dumps(record["versions"]),
                    "key": job.key,
                    "run": record["run"],
                }

    def tables(self) -> list[Table]:
        """The suite's tables."""
        return [self._table(name, layout) for name, layout in self.board.experiment.suite.tables.items()]

    def _table(self, name: str, layout: Layout) -> Table:
        columns = [self._column(layout, what) for what in layout.columns.values()]
        group, lines = "", []
        for place, (heading, row) in enumerate(layout.rows.items()):
            group = row.group or group
            cells = tuple(column[place] for column in columns)
            lines.append(Line(heading, group, cells, tuple(_shown(value) for value in row.paper)))
        notes = (*self._notes(lines), *self._starts(layout))
        return Table(name, layout.title, tuple(layout.columns), layout.spans, tuple(lines), notes)

    def _column(self, layout: Layout, what: str) -> list[Cell]:
        """One column from top to bottom, its best row marked within each group."""
        names, rows = list(layout.rows), list(layout.rows.values())
        if what in PLAIN or what.startswith("judge:"):
            return [self._plain(row, what) for row in rows]
        samples = {name: self._sample(row, what) for name, row in layout.rows.items()}
        cells: list[Cell] = [NOTHING] * len(rows)
        groups, group = [], ""
        for row in rows:
            group = row.group or group
            groups.append(group)
        for place, name in enumerate(names):
            found = samples[name]
            if found is None:
                continue
            sample, metric, records = found
            rivals = {
                other: samples[other]
                for at, other in enumerate(names)
                if other != name and groups[at] == groups[place] and samples[other] is not None
            }
            against = {other: compare(sample, rival[0]) for other, rival in rivals.items() if rival is not None}
            mean = statistics.fmean(sample.values.values())
            better = all(
                metric.sign * mean > metric.sign * statistics.fmean(rival[0].values.values())
                for rival in rivals.values()
                if rival is not None
            )
            clear = all(found.p is not None and found.p < LEVEL for found in against.values())
            cells[place] = Number(
                mean,
                statistics.stdev(sample.values.values()) if len(sample.values) > 1 else None,
                len(sample.values),
                self.wanted(),
                1 if metric.scale == 100 else 3,
                tuple(records),
                bool(against) and better and clear,
                against,
            )
        return cells

    def _sample(self, row: TableRow, what: str) -> tuple[Sample, Metric, list[Mapping[str, Any]]] | None:
        """A row's values on a data set, or averaged over all of its data sets, in the table's unit; None: none yet."""
        if row.run is None:
            return None
        suite = self.board.experiment.suite
        datasets = (suite.rows[row.run].on or tuple(suite.datasets)) if what == "average" else (what,)
        found = [self.records(dataset, row.run) for dataset in datasets]
        seeds = sorted(set.intersection(*(set(records) for records in found)))
        if not seeds:
            return None
        metric = metric_of(_judged(found[0][seeds[0]]))
        records = [each[seed] for each in found for seed in seeds]
        values = {
            seed: metric.scale * statistics.fmean(_judged(each[seed])[metric.name] for each in found) for seed in seeds
        }
        if what == "average":
            return Sample(values, {}), metric, records
        answers = {seed: self.out / found[0][seed]["run"] / ANSWERS for seed in seeds}
        there = answers if all(path.is_file() for path in answers.values()) else {}
        hashes = {record["split_hashes"].get("test") for record in records}
        return Sample(values, there, hashes.pop() if len(hashes) == 1 else None), metric, records

    def _plain(self, row: TableRow, what: str) -> Cell:
        """Size, cost, where it looks, or a judge's score of a row, over all of its data sets."""
        if row.run is None:
            return NOTHING
        records = [record for (_, name) in self.finals if name == row.run for record in self._of_row(name)]
        if not records:
            return NOTHING
        if what == "parameters":
            return in_millions(records[0]["trained_parameters"])
        if what == "flops":
            return f"{records[0]['flops'] / records[0]['flops_plain']:.2f} ×"
        values = [value for record in records if (value := self._besides(record, what)) is not None]
        if not values:
            return NOTHING
        spread = statistics.stdev(values) if len(values) > 1 else None
        return Number(statistics.fmean(values), spread, len(values), len(records), 1, tuple(records))

    def _besides(self, record: Mapping[str, Any], what: str) -> float | None:
        """What a run has to show for such a column."""
        kind, _, name = what.partition(":")
        if kind == "minutes":
            return record["seconds"] / 60
        if kind == "validation":
            metrics = record["validation"]
            return None if metrics is None else metric_of(metrics).scale * metrics[metric_of(metrics).name]
        if kind == "attention":
            share = (record["attention"] or {}).get(name)
            return None if share is None else 100 * share
        return self._judgement(record, name)

    def _of_row(self, row: str) -> list[Mapping[str, Any]]:
        return [
            record for dataset, name in self.finals if name == row for record in self.records(dataset, row).values()
        ]

    def _judgement(self, record: Mapping[str, Any], category: str) -> float | None:
        """Mean of the scores that `toast eval --judge` left in the run, of one category or, as `overall`, of all."""
        scores = []
        for file in (self.out / record["run"]).glob("judge/*/judgements.jsonl"):
            for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
                if line["score"] is not None and category in ("overall", line["category"]):
                    scores.append(line["score"])
        return statistics.fmean(scores) if scores else None

    def _notes(self, lines: Sequence[Line]) -> Iterator[str]:
        numbers = [cell for line in lines for cell in line.cells if isinstance(cell, Number)]
        if not numbers:
            yield "No final run is done yet."
            return
        seeds = sorted({record["seed"] for number in numbers for record in number.runs})
        yield f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}."
        pairs = {found.over for number in numbers for found in number.against.values() if found.over}
        tests = " or ".join(_TESTS[over] for over in sorted(pairs, reverse=True))
        if tests:
            yield f"Bold: better than every other row measured here, each with p < {LEVEL} ({tests})."
        if any(line.paper for line in lines):
            yield "The second line of a row is the paper's."

    def _starts(self, layout: Layout) -> Iterator[str]:
        """Where the feedback paths come from of rows that are to have a pre-tuned one."""
        experiment, begun = self.board.experiment, dict[str, list[str]]()
        for heading, row in layout.rows.items():
            if row.run is None or not experiment.suite.rows[row.run].pretuned:
                continue
            for dataset in sorted({dataset for dataset, name in experiment.cells if name == row.run})[:1]:
                recipe = experiment.recipe(dataset, row.run, "final", experiment.suite.seeds[0])
                start = f"{getattr(recipe.method, 'start', 'no')} start, for want of an --init-from"
                begun.setdefault(recipe.init_from or start, []).append(heading)
        for start, headings in begun.items():
            yield f"Feedback paths of {', '.join(headings)}: {start}."


_TESTS = {
    "test images": "paired t-test over the same test images, each counted by the share of seeds that have it right",
    "seeds": "paired t-test over seeds",
}


def in_millions(count: int) -> str:
    """14900168 as 14.9M, 645 as 645."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if count >= size / 10:
            return f"{count / size:.1f}{unit}"
    return f"{count:,}"


def _judged(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return record["test"] or record["validation"]


def _shown(value: float | str | None) -> str:
    return "" if value is None else str(value)
