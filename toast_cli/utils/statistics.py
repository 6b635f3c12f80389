"""Uncertainty of results: intervals of proportions and means over images, and paired tests of two lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE_LEVEL = 0.95
"""Confidence level of intervals. Differences with p below one minus this level are significant."""
RESAMPLES = 10_000
MAX_CHUNK_VALUES = 4_000_000
"""Maximum number of values drawn at once."""


@dataclass(frozen=True)
class MeanEstimate:
    """A mean over `images`, and its 95% confidence interval.

    The confidence level is higher if it is one of several simultaneous intervals.
    """

    mean: float
    low: float
    high: float
    images: int


def compute_proportion_interval(count: int, total: int, intervals: int = 1) -> tuple[float, float]:
    """Return the 95% interval of the proportion `count` of `total`, by the score method (Wilson, 1927).

    It stays within 0 and 1 and has a width even if all or none count: 23 of 23 gives 0.857 to 1. With several
    simultaneous `intervals`, each is widened by Bonferroni's correction.
    """
    z = _compute_quantile(intervals)
    share, weight = count / total, z * z / total
    center = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    # The ends are exact where all or none count; rounding would leave them next to 0 and 1.
    return 0.0 if count == 0 else max(0.0, center - half), 1.0 if count == total else min(1.0, center + half)


def compute_mean_margin(deviation: float, total: int) -> float:
    """Return half the width of the 95% interval of a mean of `total` values with this standard deviation."""
    return _compute_quantile(1) * deviation / math.sqrt(total)


def estimate_proportion(values: Sequence[float] | np.ndarray) -> MeanEstimate | None:
    """Return the share of ones among values that are 0 or 1. NaN is ignored; return None if no value remains."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    return MeanEstimate(
        float(known.mean()), *compute_proportion_interval(int(known.sum()), len(known)), images=len(known)
    )


def estimate_paired_difference(
    one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray, intervals: int = 1
) -> MeanEstimate | None:
    """Return the share of ones in `other` minus that in `one`, both 0 or 1 for the same images; None without images.

    The interval is the adjusted one of Bonett and Price (2012), which has a width even if the two never differ. With
    several simultaneous `intervals`, each is widened by Bonferroni's correction.
    """
    difference = np.subtract(other, one, dtype=np.float64)
    total = len(difference)
    if not total:
        return None
    gained, lost = ((int((difference == sign).sum()) + 1) / (total + 2) for sign in (1, -1))
    center = gained - lost
    half = _compute_quantile(intervals) * math.sqrt((gained + lost - center**2) / (total + 2))
    return MeanEstimate(float(difference.mean()), max(-1.0, center - half), min(1.0, center + half), total)


def _compute_quantile(intervals: int) -> float:
    """Return the standard normal quantile of a two-sided interval that is one of several simultaneous `intervals`."""
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE_LEVEL) / intervals / 2)


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0, intervals: int = 1) -> MeanEstimate | None:
    """Return the mean of one value per image, with its interval. NaN is ignored; return None if no value remains.

    The interval is a percentile bootstrap (Efron, 1979): images are drawn with replacement. For a difference between
    two models on the same images (a paired bootstrap), pass the differences. With several simultaneous `intervals`,
    each is widened by Bonferroni's correction. Values of 0 or 1 are a proportion: see `estimate_proportion`.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    rng = np.random.default_rng(seed)
    size = max(1, MAX_CHUNK_VALUES // len(known))
    means = [
        known[rng.integers(len(known), size=(min(size, RESAMPLES - done), len(known)))].mean(1)
        for done in range(0, RESAMPLES, size)
    ]
    outside = (1 - CONFIDENCE_LEVEL) / intervals
    low, high = np.quantile(np.concatenate(means), [outside / 2, 1 - outside / 2])
    return MeanEstimate(float(known.mean()), float(low), float(high), len(known))


def compute_paired_p_value(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the two-sided p value of a paired t-test, or of the sign test if all differences are equal."""
    difference = np.subtract(one, other)
    if not difference.any():
        return 1.0
    if np.ptp(difference) == 0:  # the t-test would divide by zero
        return float(2.0 ** (1 - len(one)))
    from scipy.stats import ttest_rel

    p = float(ttest_rel(one, other).pvalue)
    return 1.0 if math.isnan(p) else p
