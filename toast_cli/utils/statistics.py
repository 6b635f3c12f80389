"""Uncertainty of results: bootstrap intervals of a mean over images, and paired tests of two lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0, intervals: int = 1) -> MeanEstimate | None:
    """Return the mean of one value per image, with its interval. NaN is ignored; return None if no value remains.

    The interval is a percentile bootstrap (Efron, 1979): images are drawn with replacement. For a difference between
    two models on the same images (a paired bootstrap), pass the differences. With several simultaneous `intervals`,
    each is widened by Bonferroni's correction.
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
