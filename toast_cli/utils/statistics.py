"""How sure a number is: bootstrap intervals of a mean over images, and paired tests of two rows of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE_LEVEL = 0.95
"""Share of cases that an interval holds in; one less this is the p below which a difference is significant."""
RESAMPLES = 10_000
MAX_CHUNK_VALUES = 4_000_000
"""Numbers drawn at once."""


@dataclass(frozen=True)
class MeanEstimate:
    """A mean over `images`, and the interval that holds 95% of the means of redrawn sets of as many images.

    More than 95%, where it is one of several that are to hold together.
    """

    mean: float
    low: float
    high: float
    images: int


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0, intervals: int = 1) -> MeanEstimate | None:
    """Return the mean of one value an image, with its interval; NaN is left out, and None returned if nothing is left.

    The interval is that of a percentile bootstrap (Efron, 1979): images are drawn with replacement. For a difference
    between two models on the same images (a paired bootstrap), give the differences. Of several `intervals` that are
    to hold together at the confidence level, each is widened by Bonferroni's correction.
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
    """Return the two-sided p value of a paired t-test; that of the sign test if every difference is the same."""
    difference = np.subtract(one, other)
    if not difference.any():
        return 1.0
    if np.ptp(difference) == 0:  # the t-test would divide by zero
        return float(2.0 ** (1 - len(one)))
    from scipy.stats import ttest_rel

    p = float(ttest_rel(one, other).pvalue)
    return 1.0 if math.isnan(p) else p
