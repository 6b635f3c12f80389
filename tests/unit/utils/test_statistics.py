"""Intervals of proportions and of their paired differences."""

from __future__ import annotations

import math

import pytest

from toast_cli.utils.statistics import compute_proportion_interval, estimate_paired_difference, estimate_proportion


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    # Newcombe (1998), table I, method 3 (score, no continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_proportion_is_the_published_one(count: int, total: int, low: float, high: float) -> None:
    assert compute_proportion_interval(count, total) == pytest.approx((low, high), abs=5e-5)
    other = compute_proportion_interval(total - count, total)
    assert other == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_all_right_of_a_few_is_not_certain() -> None:
    found = estimate_proportion([1.0] * 23 + [math.nan])
    assert found is not None and (found.mean, found.high, found.images) == (1, 1, 23)
    assert found.low == pytest.approx(0.8569, abs=5e-5)
    wide = compute_proportion_interval(23, 23, intervals=3)
    assert wide[0] < found.low and wide[1] == 1
    assert estimate_proportion([math.nan]) is None


def test_the_interval_of_a_paired_difference_is_the_adjusted_one() -> None:
    one, other = [1] * 12 + [0] * 8 + [1] * 6 + [0] * 4, [1] * 12 + [0] * 8 + [0] * 6 + [1] * 4
    found = estimate_paired_difference(one, other)
    assert found is not None and found.mean == pytest.approx(-2 / 30)
    gained, lost = 5 / 32, 7 / 32
    half = 1.959964 * math.sqrt((gained + lost - (gained - lost) ** 2) / 32)
    assert (found.low, found.high) == pytest.approx((gained - lost - half, gained - lost + half))
    same = estimate_paired_difference([1] * 23, [1] * 23)
    assert same is not None and same.mean == 0 and same.low == pytest.approx(-same.high) and same.high > 0.05
    assert estimate_paired_difference([], []) is None
