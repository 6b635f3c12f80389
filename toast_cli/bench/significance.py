"""Whether one row is better than another: a paired test, over the same test images where their answers are there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from toast_cli.storage.sealing import read_sealed

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """The probability of a difference at least this large between equals, and what was paired; None: nothing was."""

    p: float | None
    pairs: int = 0
    over: str = ""

    def __str__(self) -> str:
        return "not compared" if self.p is None else f"p = {self.p:.2g} over {self.pairs:,} {self.over}"


@dataclass(frozen=True)
class Sample:
    """What is known of one row on one data set: a value a seed, and the files of their test answers.

    `split` is the hash of the test split: answers to other images are not compared.
    """

    values: Mapping[int, float]
    answers: Mapping[int, Path]
    split: str | None = None


def compare(one: Sample, other: Sample) -> Comparison:
    """A paired t-test, two-sided.

    Over test images, if all seeds of both rows left their answers to the same ones: what is paired is the share of
    seeds that have an image right. Else over the seeds that both have, if there are two at least.
    """
    if one.answers and other.answers and one.split is not None and one.split == other.split:
        first, second = _right(one.answers), _right(other.answers)
        if first.keys() == second.keys() and len(first) > 1:
            return _tested([first[i] for i in first], [second[i] for i in first], "test images")
    seeds = sorted(one.values.keys() & other.values.keys())
    if len(seeds) > 1:
        return _tested([one.values[seed] for seed in seeds], [other.values[seed] for seed in seeds], "seeds")
    return Comparison(None)


def _tested(one: Sequence[float], other: Sequence[float], over: str) -> Comparison:
    from scipy.stats import ttest_rel

    difference = np.subtract(one, other)
    if not difference.any():
        return Comparison(1.0, len(one), over)
    if (
        np.ptp(difference) == 0
    ):  # the same difference every time: the t-test would divide by zero, the sign test does not
        return Comparison(2.0 ** (1 - len(one)), len(one), over)
    p = float(ttest_rel(one, other).pvalue)
    return Comparison(1.0 if math.isnan(p) else p, len(one), over)


def _right(answers: Mapping[int, Path]) -> dict[int, float]:
    """Share of seeds that have each image right, by the image's place in the split."""
    shares: dict[int, list[bool]] = {}
    for path in answers.values():
        for place, right in _read(path).items():
            shares.setdefault(place, []).append(right)
    return {
        place: sum(rights) / len(answers) for place, rights in sorted(shares.items()) if len(rights) == len(answers)
    }


@cache
def _read(path: Path) -> Mapping[int, bool]:
    found = read_sealed(path)
    return {
        place: label == chosen
        for place, label, chosen in zip(found["index"], found["label"], found["chosen"], strict=True)
    }
