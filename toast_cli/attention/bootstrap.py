"""How sure a mean over images is: percentile bootstrap (Efron, 1979), images drawn with replacement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CONFIDENCE_LEVEL = 0.95
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


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0, together: int = 1) -> MeanEstimate | None:
    """The mean of one value an image, with its interval; what is no number (NaN) is left out. None: nothing is left.

    For a difference between two models on the same images (a paired bootstrap), give the differences. One of several
    intervals that are to hold `together` with 95% is as much wider as Bonferroni has it.
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
    outside = (1 - CONFIDENCE_LEVEL) / together
    low, high = np.quantile(np.concatenate(means), [outside / 2, 1 - outside / 2])
    return MeanEstimate(float(known.mean()), float(low), float(high), len(known))
