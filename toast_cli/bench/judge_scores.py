"""Scores that `toast eval --judge` left in final runs, one judge's on one file of questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any

from toast_cli.bench.results import ExperimentResults
from toast_cli.storage.checksums import read_checksummed_lines

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
