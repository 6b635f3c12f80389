"""Counts and metrics per class, confusions and calibration of given answers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from tests.unit.evaluation.answers import answers_of, pixel_answers
from toast_cli.evaluation.class_metrics import (
    compute_calibration,
    compute_class_metrics,
    compute_pixel_class_metrics,
    count_confusions,
    iterate_confusion_rows,
)

RNG = np.random.default_rng(0)
LABEL, CHOSEN = RNG.integers(0, 7, (2, 300))
CHOSEN = np.where(RNG.random(300) < 0.5, LABEL, CHOSEN)
PROBABILITY = RNG.random(300).astype(np.float32)
RANDOM = answers_of("abcdefg", LABEL, CHOSEN, PROBABILITY)


def test_metrics_of_random_answers_are_those_of_scikit_learn() -> None:
    rows = compute_class_metrics(RANDOM)
    precision, recall, f1, support = precision_recall_fscore_support(LABEL, CHOSEN)
    for name, expected in {"precision": precision, "recall": recall, "f1": f1, "support": support}.items():
        np.testing.assert_allclose([row[name] for row in rows], expected, rtol=1e-6)
    means = [PROBABILITY[number == LABEL].mean() for number in range(7)]
    np.testing.assert_allclose([row["mean_probability"] for row in rows], means, rtol=1e-5)
    np.testing.assert_array_equal(count_confusions(RANDOM).toarray(), confusion_matrix(LABEL, CHOSEN))


def test_what_is_not_defined_has_no_number() -> None:
    never_chosen, no_sample, neither, _ = compute_class_metrics(
        answers_of(["never chosen", "no sample", "neither", "rest"], [0, 3, 3], [1, 3, 3], [0.9, 0.5, 0.7])
    )
    assert never_chosen == {
        "class": "never chosen", "support": 1, "predicted": 0, "correct": 0, "precision": None, "recall": 0.0,
        "f1": 0.0, "mean_probability": pytest.approx(0.9),
    }  # fmt: skip
    assert (no_sample["precision"], no_sample["recall"], no_sample["mean_probability"]) == (0.0, None, None)
    assert neither["f1"] is None


def test_pixels_have_an_intersection_over_union() -> None:
    ground, beetle, sky = compute_pixel_class_metrics(
        pixel_answers(["ground", "beetle", "sky"], [[6, 2, 0], [1, 3, 0], [0] * 3])
    )
    assert ground == {"class": "ground", "pixels": 8, "predicted": 7, "correct": 6, "iou": 6 / 9, "accuracy": 0.75}
    assert beetle["iou"] == 0.5 and sky["iou"] is None and sky["accuracy"] is None


def test_confusions_are_a_matrix_and_of_many_classes_a_list_of_pairs() -> None:
    answers = answers_of(["a", "b", "c"], [0, 0, 0, 1], [0, 2, 2, 1])
    assert list(iterate_confusion_rows(answers, 3)) == [
        ["label", "a", "b", "c"], ["a", 1, 0, 2], ["b", 0, 1, 0], ["c", 0, 0, 0],
    ]  # fmt: skip
    assert list(iterate_confusion_rows(answers, 2)) == [
        ["label", "choice", "count"], ["a", "a", 1], ["a", "c", 2], ["b", "b", 1],
    ]  # fmt: skip


def test_calibration_is_that_of_a_written_out_reference() -> None:
    found = compute_calibration(RANDOM)
    assert found is not None
    error = 0.0
    for number in range(15):
        inside = np.floor(PROBABILITY * 15) == number
        right = (LABEL == CHOSEN)[inside]
        assert found.counts[number] == inside.sum()
        assert found.accuracy[number] == pytest.approx(right.mean())
        assert found.probability[number] == pytest.approx(PROBABILITY[inside].mean(), rel=1e-5)
        error += abs(right.mean() - PROBABILITY[inside].mean()) * inside.mean()
    assert found.error == pytest.approx(error, rel=1e-4)


def test_a_certain_answer_is_in_the_last_bin_and_without_probabilities_there_is_no_calibration() -> None:
    certain = compute_calibration(answers_of("ab", [0, 1], [0, 0], [1.0, 1.0]))
    assert certain is not None and certain.counts[-1] == 2 and certain.error == pytest.approx(0.5)
    assert compute_calibration(answers_of("ab", [0], [0])) is None
