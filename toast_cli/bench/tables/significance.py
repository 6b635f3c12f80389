"""Paired significance tests between rows, over test items if both have answers to the same ones, else over seeds."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from toast_cli.storage.checksums import read_checksummed_json
from toast_cli.utils.statistics import CONFIDENCE_LEVEL, compute_paired_p_value

SIGNIFICANCE_LEVEL = round(1 - CONFIDENCE_LEVEL, 9)
"""A p below this makes a number bold."""
PAIRED_IMAGES, PAIRED_QUESTIONS, PAIRED_SEEDS = "test images", "questions", "seeds"


@dataclass(frozen=True)
class PairedTestResult:
    """Result of a paired test: the p-value (None if nothing could be paired), and what was paired."""

    p: float | None
    pairs: int = 0
    over: str = ""

    def __str__(self) -> str:
        return "not compared" if self.p is None else f"p = {self.p:.2g} over {self.pairs:,} {self.over}"


@dataclass(frozen=True)
class ScoreSample:
    """Scores of a row in a column: a value per seed, and a value per test item, averaged over seeds.

    `over` names the kind of items. Items are paired only if `split` is equal.
    """

    values: Mapping[int, float]
    items: Mapping[Hashable, float] = field(default_factory=dict)
    over: str = ""
    split: str | None = None


def run_paired_test(one: ScoreSample, other: ScoreSample) -> PairedTestResult:
    """Run a two-sided paired t-test.

    Pairs are test items if both rows have the same ones, else the seeds that both have, if there are at least two.
    """
    same_items = one.split is not None and one.split == other.split and one.items.keys() == other.items.keys()
    if same_items and len(one.items) > 1:
        p = compute_paired_p_value(list(one.items.values()), [other.items[item] for item in one.items])
        return PairedTestResult(p, len(one.items), one.over)
    seeds = sorted(one.values.keys() & other.values.keys())
    if len(seeds) > 1:
        p = compute_paired_p_value([one.values[seed] for seed in seeds], [other.values[seed] for seed in seeds])
        return PairedTestResult(p, len(seeds), PAIRED_SEEDS)
    return PairedTestResult(None)


def average_over_seeds(seeds: Collection[Mapping[Hashable, float]]) -> dict[Hashable, float]:
    """Return the mean over seeds of each item that every seed has."""
    first = next(iter(seeds), {})
    return {
        item: sum(each[item] for each in seeds) / len(seeds) for item in first if all(item in each for each in seeds)
    }


@cache
def read_correct_answers(path: Path) -> Mapping[Hashable, float]:
    """Return 1 or 0 for each test image that was classified correctly or not, by index in the split."""
    answers = read_checksummed_json(path)
    return {
        place: float(label == chosen)
        for place, label, chosen in zip(answers["index"], answers["label"], answers["chosen"], strict=True)
    }
