"""Aggregation of runs into cells: a value per seed, and values per test item for paired tests."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toast_cli.bench.results import ExperimentResults
from toast_cli.bench.tables.metrics import (
    TableMetric,
    get_decisive_metrics,
    get_registered_metric,
    get_scaled_score,
)
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
from toast_cli.utils.names import quote_argument

RunRecord = Mapping[str, Any]
QuestionScores = dict[Hashable, tuple[str, float]]
"""Category and score by question."""


class JudgeScores:
    """The scores that one judge gave to all final runs on one file of questions.

    Scores of different judges or on different files are not comparable. The judge and file with the most scores are
    used, the first by name if several have as many. `others` names the rest.
    """

    def __init__(self, results: ExperimentResults) -> None:
        self._scores: dict[str, dict[str, QuestionScores]] = {}
        counted: Counter[str] = Counter()
        for dataset, row in results.finals:
            for record in results.get_records(dataset, row).values():
                by_judge = self._scores[record["run"]] = _read_scores(results, record)
                counted.update({judge: len(scores) for judge, scores in by_judge.items()})
        ranked = sorted(counted, key=lambda judge: (-counted[judge], judge))
        self.judge: str | None = ranked[0] if ranked else None
        self.others: tuple[str, ...] = tuple(ranked[1:])

    def select_category(self, record: Mapping[str, Any], category: str) -> dict[Hashable, float]:
        """Return a run's scores by question, of one category, or of all if `category` is `overall`."""
        scores = self._scores[record["run"]].get(self.judge or "", {})
        return {number: score for number, (kind, score) in scores.items() if category in ("overall", kind)}


@dataclass(frozen=True)
class AggregatedCell:
    """A cell: its sample, the runs behind it, and the data sets that each of its values averages."""

    sample: ScoreSample
    runs: tuple[RunRecord, ...]
    datasets: tuple[str, ...]


class ResultAggregator:
    """Aggregates an experiment's results by row and column."""

    def __init__(self, results: ExperimentResults) -> None:
        self.results, self.judge_scores = results, JudgeScores(results)

    def aggregate_by_seed(self, row: str, column: TableColumn) -> AggregatedCell | None:
        """Return a row's value for each seed, averaged over the column's data sets; None if no seed has all of them."""
        shows, name = column.shows, column.shows.partition(":")[2]
        if shows.startswith("judge:"):
            return self._aggregate_judge_scores(row, name)
        if shows == "minutes":
            return self._average_by_seed(row, self.results.list_datasets(row), lambda record: record["seconds"] / 60)
        if shows == "validation":
            return self._average_by_seed(row, self.results.list_datasets(row), _get_validation_score)
        if shows.startswith("metric:"):
            metric = get_registered_metric(name)
            return self._average_by_seed(
                row, self.results.list_datasets(row), lambda record: _get_registered_value(record, metric)
            )
        if shows.startswith("attention:"):
            datasets = self.results.list_datasets(row) if column.dataset is None else (column.dataset,)
            return self._average_by_seed(row, datasets, lambda record: _get_attention_percent(record, name))
        if shows == "average":
            suite = self.results.board.experiment.suite
            return self._average_by_seed(row, suite.rows[row].on or tuple(suite.datasets), _get_test_score)
        return self._aggregate_test_scores(row, shows)

    def list_records(self, row: str) -> list[RunRecord]:
        """Return the records of a row's finished final runs."""
        datasets = self.results.list_datasets(row)
        return [record for dataset in datasets for record in self.results.get_records(dataset, row).values()]

    def _average_by_seed(
        self, row: str, datasets: Sequence[str], value: Callable[[RunRecord], float | None]
    ) -> AggregatedCell | None:
        by_dataset = [
            {seed: (record, number) for seed, record in records.items() if (number := value(record)) is not None}
            for records in (self.results.get_records(dataset, row) for dataset in datasets)
        ]
        seeds = sorted(set.intersection(*(set(each) for each in by_dataset))) if by_dataset else []
        if not seeds:
            return None
        values = {seed: statistics.fmean(each[seed][1] for each in by_dataset) for seed in seeds}
        return AggregatedCell(
            ScoreSample(values), tuple(each[seed][0] for each in by_dataset for seed in seeds), tuple(datasets)
        )

    def _aggregate_test_scores(self, row: str, dataset: str) -> AggregatedCell | None:
        """Return a row's test scores on a data set, with the test images that all seeds have answers to."""
        cell = self._average_by_seed(row, (dataset,), _get_test_score)
        if cell is None:
            return None
        files = [self.results.out / record["run"] / ANSWERS_FILE for record in cell.runs]
        splits = {record["split_hashes"].get("test") for record in cell.runs}
        if len(splits) > 1 or not all(file.is_file() for file in files):
            return cell
        items = average_over_seeds([read_correct_answers(file) for file in files])
        return AggregatedCell(
            ScoreSample(cell.sample.values, items, PAIRED_IMAGES, splits.pop()), cell.runs, cell.datasets
        )

    def _aggregate_judge_scores(self, row: str, category: str) -> AggregatedCell | None:
        """Return the judge's scores, averaged over questions, with the questions for which every seed has a score."""
        datasets, scores = self.results.list_datasets(row), self.judge_scores

        def mean(record: RunRecord) -> float | None:
            by_question = scores.select_category(record, category)
            return statistics.fmean(by_question.values()) if by_question else None

        cell = self._average_by_seed(row, datasets, mean)
        if cell is None or len(datasets) > 1:  # answers of models trained on different data are not paired
            return cell
        items = average_over_seeds([scores.select_category(record, category) for record in cell.runs])
        return AggregatedCell(
            ScoreSample(cell.sample.values, items, PAIRED_QUESTIONS, scores.judge), cell.runs, cell.datasets
        )


def _get_test_score(record: RunRecord) -> float:
    return get_scaled_score(get_decisive_metrics(record))


def _get_validation_score(record: RunRecord) -> float | None:
    return None if record["validation"] is None else get_scaled_score(record["validation"])


def _get_registered_value(record: RunRecord, metric: TableMetric) -> float | None:
    """Return a registered metric of a run in the unit of a table; None if the run was made without it."""
    value = get_decisive_metrics(record).get(metric.name)
    return None if value is None else metric.scale * value


def _get_attention_percent(record: RunRecord, which: str) -> float | None:
    share = (record["attention"] or {}).get(which)
    return None if share is None else 100 * share


def _read_scores(results: ExperimentResults, record: Mapping[str, Any]) -> dict[str, QuestionScores]:
    """Return a run's scores by judge and file of questions; the last score of a question counts."""
    scores: dict[str, QuestionScores] = {}
    run = results.out / record["run"]
    for file in sorted(run.glob("judge/*/judgements.jsonl")):
        for line in read_checksummed_lines(
            file, f"toast eval --run {quote_argument(run)} --judge QUESTIONS requests the damaged scores again."
        ):
            if line["score"] is not None:
                judge = f"{line['judge']} on {file.parent.name}"
                scores.setdefault(judge, {})[line["question_id"]] = line["category"], line["score"]
    return scores
