"""Paired tests: over the same test images where answers are there, else over seeds, else none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from toast_cli.bench.tables.significance import (
    PAIRED_IMAGES,
    ScoreSample,
    average_over_seeds,
    read_correct_answers,
    run_paired_test,
)


def answers(path: Path, right: np.ndarray) -> Path:
    labels = [1] * len(right)
    given = {"index": list(range(len(right))), "label": labels, "chosen": [int(each) for each in right]}
    path.write_text(json.dumps(given))
    return path


def test_images_are_paired_by_the_share_of_seeds_that_have_them_right(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 200)) < 0.7, rng.random((2, 200)) < 0.6
    samples = [
        ScoreSample(
            {seed: 100 * float(given.mean()) for seed, given in enumerate(rights)},
            average_over_seeds(
                [
                    read_correct_answers(answers(tmp_path / f"{name}{seed}.json", given))
                    for seed, given in enumerate(rights)
                ]
            ),
            PAIRED_IMAGES,
            "c",
        )
        for name, rights in (("one", one), ("other", other))
    ]
    found = run_paired_test(*samples)
    assert (found.pairs, found.over) == (200, "test images")
    assert found.p == pytest.approx(float(ttest_rel(one.mean(0), other.mean(0)).pvalue))


def test_answers_to_other_images_are_not_compared_but_seeds_are(tmp_path: Path) -> None:
    items = read_correct_answers(answers(tmp_path / "0.json", np.array([True, False, True, True])))
    one = ScoreSample({0: 80.0, 1: 81.0, 2: 80.5}, items, PAIRED_IMAGES, "c")
    other = ScoreSample({1: 70.0, 2: 71.0, 3: 72.0}, items, PAIRED_IMAGES, "d")
    found = run_paired_test(one, other)
    assert (found.pairs, found.over) == (2, "seeds")
    assert found.p == pytest.approx(float(ttest_rel([81.0, 80.5], [70.0, 71.0]).pvalue))


def test_a_single_seed_without_answers_says_nothing() -> None:
    assert run_paired_test(ScoreSample({0: 80.0}), ScoreSample({0: 10.0})).p is None
    assert str(run_paired_test(ScoreSample({0: 80.0}), ScoreSample({0: 10.0}))) == "not compared"


def test_equal_rows_do_not_differ_and_a_constant_difference_is_no_division_by_zero() -> None:
    same = ScoreSample({0: 80.0, 1: 82.0})
    assert run_paired_test(same, same).p == 1.0
    # Two seeds alone show little, whatever the difference: a coin falls twice on the same side every other time.
    assert run_paired_test(same, ScoreSample({0: 70.0, 1: 72.0})).p == 0.5
