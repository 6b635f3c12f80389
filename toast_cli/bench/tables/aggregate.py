"""What one row has to show in one column: a value for every seed, and what of it a test can pair."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toast_cli.bench.judge_scores import Judgements
from toast_cli.bench.results import Results
from toast_cli.bench.tables.metrics import judged, metric_of
from toast_cli.bench.tables.model import Column
from toast_cli.bench.tables.significance import IMAGES, QUESTIONS, Sample, over_seeds, right
from toast_cli.storage.run_folder import ANSWERS

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """A row's sample in a column, the runs that it is made of and the data sets that each value is a mean over."""

    sample: Sample
    runs: tuple[Record, ...]
    datasets: tuple[str, ...]


class Measures:
    """Reads columns off an experiment's results."""

    def __init__(self, results: Results) -> None:
        self.results, self.judgements = results, Judgements(results)

    def of(self, row: str, column: Column) -> Found | None:
        """A row's values, those of a seed averaged over the column's data sets; None: no seed has them all yet."""
        shows, name = column.shows, column.shows.partition(":")[2]
        if shows.startswith("judge:"):
            return self._judged(row, name)
        if shows == "minutes":
            return self._mean(row, self.results.datasets(row), lambda record: record["seconds"] / 60)
        if shows == "validation":
            return self._mean(row, self.results.datasets(row), _validated)
        if shows.startswith("attention:"):
            datasets = self.results.datasets(row) if column.dataset is None else (column.dataset,)
            return self._mean(row, datasets, lambda record: _share(record, name))
        if shows == "average":
            suite = self.results.board.experiment.suite
            return self._mean(row, suite.rows[row].on or tuple(suite.datasets), _value)
        return self._tested(row, shows)

    def all_of(self, row: str) -> list[Record]:
        """Every finished final run of a row."""
        datasets = self.results.datasets(row)
        return [record for dataset in datasets for record in self.results.records(dataset, row).values()]

    def _mean(self, row: str, datasets: Sequence[str], value: Callable[[Record], float | None]) -> Found | None:
        found = [
            {seed: (record, number) for seed, record in records.items() if (number := value(record)) is not None}
            for records in (self.results.records(dataset, row) for dataset in datasets)
        ]
        seeds = sorted(set.intersection(*(set(each) for each in found))) if found else []
        if not seeds:
            return None
        values = {seed: statistics.fmean(each[seed][1] for each in found) for seed in seeds}
        return Found(Sample(values), tuple(each[seed][0] for each in found for seed in seeds), tuple(datasets))

    def _tested(self, row: str, dataset: str) -> Found | None:
        """On one data set, with the test images that all seeds left answers to."""
        found = self._mean(row, (dataset,), _value)
        if found is None:
            return None
        files = [self.results.out / record["run"] / ANSWERS for record in found.runs]
        splits = {record["split_hashes"].get("test") for record in found.runs}
        if len(splits) > 1 or not all(file.is_file() for file in files):
            return found
        items = over_seeds([right(file) for file in files])
        return Found(Sample(found.sample.values, items, IMAGES, splits.pop()), found.runs, found.datasets)

    def _judged(self, row: str, category: str) -> Found | None:
        """A judge's scores, averaged over questions, with the questions that every seed has a score for."""
        datasets, scores = self.results.datasets(row), self.judgements

        def mean(record: Record) -> float | None:
            found = scores.of(record, category)
            return statistics.fmean(found.values()) if found else None

        found = self._mean(row, datasets, mean)
        if found is None or len(datasets) > 1:  # an answer of a model of other data is another answer
            return found
        items = over_seeds([scores.of(record, category) for record in found.runs])
        return Found(Sample(found.sample.values, items, QUESTIONS, scores.judge), found.runs, found.datasets)


def _value(record: Record) -> float:
    metric = metric_of(judged(record))
    return metric.scale * judged(record)[metric.name]


def _validated(record: Record) -> float | None:
    metrics = record["validation"]
    return None if metrics is None else metric_of(metrics).scale * metrics[metric_of(metrics).name]


def _share(record: Record, which: str) -> float | None:
    share = (record["attention"] or {}).get(which)
    return None if share is None else 100 * share
