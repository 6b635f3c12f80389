"""What one row has to show in one column: a value for every seed, and what of it a test can pair."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toast_cli.bench.results import ExperimentResults
from toast_cli.bench.tables.metrics import get_decisive_metrics, get_scaled_score
from toast_cli.bench.tables.model import TableColumn
from toast_cli.bench.tables.significance import (
    PAIRED_IMAGES,
    PAIRED_QUESTIONS,
    ScoreSample,
    average_over_seeds,
    read_correct_answers,
)
from toast_cli.storage.checksums import read_checksummed_lines
from toast_cli.storage.run_folder import ANSWERS_FILE

RunRecord = Mapping[str, Any]
QuestionScores = dict[Hashable, tuple[str, float]]
"""Category and score of every question that was scored."""


class JudgeScores:
    """The scores of all final runs; where several judges scored them, or several files, those of one alone.

    Scores of different judges, or on different questions, are no numbers of one table: that with most scores is taken
    (of equals, the first by name), and `others` names the rest.
    """

    def __init__(self, results: ExperimentResults) -> None:
        self._scores: dict[str, dict[str, QuestionScores]] = {}
        counted: Counter[str] = Counter()
        for dataset, row in results.finals:
            for record in results.records(dataset, row).values():
                found = self._scores[record["run"]] = _read_scores(results, record)
                counted.update({judge: len(scores) for judge, scores in found.items()})
        ranked = sorted(counted, key=lambda judge: (-counted[judge], judge))
        self.judge: str | None = ranked[0] if ranked else None
        self.others: tuple[str, ...] = tuple(ranked[1:])

    def of(self, record: Mapping[str, Any], category: str) -> dict[Hashable, float]:
        """A run's scores by question, of one category or, as `overall`, of all."""
        scores = self._scores[record["run"]].get(self.judge or "", {})
        return {number: score for number, (kind, score) in scores.items() if category in ("overall", kind)}


@dataclass(frozen=True)
class AggregatedCell:
    """A row's sample in a column, the runs that it is made of and the data sets that each value is a mean over."""

    sample: ScoreSample
    runs: tuple[RunRecord, ...]
    datasets: tuple[str, ...]


class ResultAggregator:
    """Reads columns off an experiment's results."""

    def __init__(self, results: ExperimentResults) -> None:
        self.results, self.judge_scores = results, JudgeScores(results)

    def of(self, row: str, column: TableColumn) -> AggregatedCell | None:
        """A row's values, those of a seed averaged over the column's data sets; None: no seed has them all yet."""
        shows, name = column.shows, column.shows.partition(":")[2]
        if shows.startswith("judge:"):
            return self._aggregate_judge_scores(row, name)
        if shows == "minutes":
            return self._mean(row, self.results.datasets(row), lambda record: record["seconds"] / 60)
        if shows == "validation":
            return self._mean(row, self.results.datasets(row), _get_validation_score)
        if shows.startswith("attention:"):
            datasets = self.results.datasets(row) if column.dataset is None else (column.dataset,)
            return self._mean(row, datasets, lambda record: _get_attention_percent(record, name))
        if shows == "average":
            suite = self.results.board.experiment.suite
            return self._mean(row, suite.rows[row].on or tuple(suite.datasets), _get_test_score)
        return self._tested(row, shows)

    def list_records(self, row: str) -> list[RunRecord]:
        """Every finished final run of a row."""
        datasets = self.results.datasets(row)
        return [record for dataset in datasets for record in self.results.records(dataset, row).values()]

    def _mean(
        self, row: str, datasets: Sequence[str], value: Callable[[RunRecord], float | None]
    ) -> AggregatedCell | None:
        found = [
            {seed: (record, number) for seed, record in records.items() if (number := value(record)) is not None}
            for records in (self.results.records(dataset, row) for dataset in datasets)
        ]
        seeds = sorted(set.intersection(*(set(each) for each in found))) if found else []
        if not seeds:
            return None
        values = {seed: statistics.fmean(each[seed][1] for each in found) for seed in seeds}
        return AggregatedCell(
            ScoreSample(values), tuple(each[seed][0] for each in found for seed in seeds), tuple(datasets)
        )

    def _tested(self, row: str, dataset: str) -> AggregatedCell | None:
        """On one data set, with the test images that all seeds left answers to."""
        found = self._mean(row, (dataset,), _get_test_score)
        if found is None:
            return None
        files = [self.results.out / record["run"] / ANSWERS_FILE for record in found.runs]
        splits = {record["split_hashes"].get("test") for record in found.runs}
        if len(splits) > 1 or not all(file.is_file() for file in files):
            return found
        items = average_over_seeds([read_correct_answers(file) for file in files])
        return AggregatedCell(
            ScoreSample(found.sample.values, items, PAIRED_IMAGES, splits.pop()), found.runs, found.datasets
        )

    def _aggregate_judge_scores(self, row: str, category: str) -> AggregatedCell | None:
        """A judge's scores, averaged over questions, with the questions that every seed has a score for."""
        datasets, scores = self.results.datasets(row), self.judge_scores

        def mean(record: RunRecord) -> float | None:
            found = scores.of(record, category)
            return statistics.fmean(found.values()) if found else None

        found = self._mean(row, datasets, mean)
        if found is None or len(datasets) > 1:  # an answer of a model of other data is another answer
            return found
        items = average_over_seeds([scores.of(record, category) for record in found.runs])
        return AggregatedCell(
            ScoreSample(found.sample.values, items, PAIRED_QUESTIONS, scores.judge), found.runs, found.datasets
        )


def _get_test_score(record: RunRecord) -> float:
    return get_scaled_score(get_decisive_metrics(record))


def _get_validation_score(record: RunRecord) -> float | None:
    return None if record["validation"] is None else get_scaled_score(record["validation"])


def _get_attention_percent(record: RunRecord, which: str) -> float | None:
    share = (record["attention"] or {}).get(which)
    return None if share is None else 100 * share


def _read_scores(results: ExperimentResults, record: Mapping[str, Any]) -> dict[str, QuestionScores]:
    """By judge and file of questions; a question that was scored again counts by its last score."""
    found: dict[str, QuestionScores] = {}
    run = results.out / record["run"]
    for file in sorted(run.glob("judge/*/judgements.jsonl")):
        for line in read_checksummed_lines(
            file, f"'toast eval --run {run} --judge QUESTIONS' asks again for what is damaged."
        ):
            if line["score"] is not None:
                judge = f"{line['judge']} on {file.parent.name}"
                found.setdefault(judge, {})[line["question_id"]] = line["category"], line["score"]
    return found
