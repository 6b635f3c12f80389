"""Whether one row is better than another: a paired test, over the same test items where their answers are there."""

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
    """The probability of a difference at least this large between equals, and what was paired; None: nothing was."""

    p: float | None
    pairs: int = 0
    over: str = ""

    def __str__(self) -> str:
        return "not compared" if self.p is None else f"p = {self.p:.2g} over {self.pairs:,} {self.over}"


@dataclass(frozen=True)
class ScoreSample:
    """What is known of one row in one column: a value a seed, and one for every test item, averaged over seeds.

    `over` says what the items are, `split` of which set: items of other sets are not compared.
    """

    values: Mapping[int, float]
    items: Mapping[Hashable, float] = field(default_factory=dict)
    over: str = ""
    split: str | None = None


def run_paired_test(one: ScoreSample, other: ScoreSample) -> PairedTestResult:
    """A paired t-test, two-sided.

    Over test items, if both rows have the same ones. Else over the seeds that both have, if there are two at least.
    """
    alike = one.split is not None and one.split == other.split and one.items.keys() == other.items.keys()
    if alike and len(one.items) > 1:
        p = compute_paired_p_value(list(one.items.values()), [other.items[item] for item in one.items])
        return PairedTestResult(p, len(one.items), one.over)
    seeds = sorted(one.values.keys() & other.values.keys())
    if len(seeds) > 1:
        p = compute_paired_p_value([one.values[seed] for seed in seeds], [other.values[seed] for seed in seeds])
        return PairedTestResult(p, len(seeds), PAIRED_SEEDS)
    return PairedTestResult(None)


def average_over_seeds(seeds: Collection[Mapping[Hashable, float]]) -> dict[Hashable, float]:
    """Every item's mean over seeds, of the items that every seed has."""
    first = next(iter(seeds), {})
    return {
        item: sum(each[item] for each in seeds) / len(seeds) for item in first if all(item in each for each in seeds)
    }


@cache
def read_correct_answers(path: Path) -> Mapping[Hashable, float]:
    """Whether each test image was given its class, 1 or 0, by its place in the split, from a file of answers."""
    found = read_checksummed_json(path)
    return {
        place: float(label == chosen)
        for place, label, chosen in zip(found["index"], found["label"], found["chosen"], strict=True)
    }
