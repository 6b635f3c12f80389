"""The closing table warns of what a headline hides."""

from __future__ import annotations

import torch

from toast_cli.tasks.class_counts import ClassCounts
from toast_cli.training.closing_warnings.classes import (
    describe_small_label_validation,
    describe_small_validation,
    describe_weak_answers,
    describe_weak_classes,
)
from toast_cli.training.closing_warnings.convergence import describe_divergence
from toast_cli.utils.statistics import compute_proportion_interval


def counts_of(*pairs: tuple[int, int, int], classes: int = 4) -> ClassCounts:
    return ClassCounts(classes, torch.tensor(pairs, dtype=torch.int64).T)


NAMES = ("ant", "bee", "cat", "dog")


def test_classes_without_images_and_never_predicted_are_named() -> None:
    found = describe_weak_classes("test", counts_of((0, 0, 850), (1, 0, 79), (2, 2, 70)), NAMES)
    assert found == [
        "test: no image of class 'dog': nothing is measured of it.",
        "test: never predicted: 'bee' (79 images).",
    ]


def test_a_class_that_is_mostly_wrong_is_named_unless_too_few_images_say_so() -> None:
    seen = counts_of((0, 0, 850), (1, 0, 78), (1, 1, 1), (2, 2, 70), (3, 0, 2), (3, 3, 1), (0, 3, 5))
    (warning,) = describe_weak_classes("test", seen, NAMES)
    assert "'bee' (1 of 79) right" in warning and "'dog'" not in warning and "91.6%" in warning
    rarely = counts_of((0, 1, 60), (0, 0, 40), (1, 0, 79), (1, 1, 1), (2, 3, 9), (2, 2, 1), (3, 3, 9))
    assert describe_weak_classes("test", rarely, NAMES) == [], "a low headline hides nothing"


def test_good_answers_and_an_empty_split_need_no_warning() -> None:
    assert describe_weak_classes("test", counts_of((0, 0, 9), (1, 1, 9), (2, 2, 9), (3, 3, 9)), NAMES) == []
    assert describe_weak_classes("test", ClassCounts(4, torch.zeros(3, 0, dtype=torch.int64)), NAMES) == []
    assert describe_weak_classes("test", None, NAMES) == []
    (one,) = describe_weak_classes("test", counts_of((0, 0, 9), (1, 1, 9), (2, 2, 9), (3, 0, 1)), NAMES)
    assert one == "test: never predicted: 'dog' (1 image)."


def test_a_small_validation_split_is_called_small_if_it_chose_an_epoch() -> None:
    small = {"images": 23, "accuracy_interval": list(compute_proportion_interval(23, 23))}
    (warning,) = describe_small_validation(small, epochs=3)
    assert "23 images" in warning and "85.7% to 100.0%, 14 points wide" in warning
    large = {"images": 500, "accuracy_interval": list(compute_proportion_interval(450, 500))}
    for metrics, epochs in ((small, 1), (large, 3), (None, 3), ({"perplexity": 3.0}, 3)):
        assert describe_small_validation(metrics, epochs) == []


def test_a_loss_that_rises_again_is_named_with_a_lower_rate() -> None:
    (said,) = describe_divergence([1.4, 0.9, 4.2], 0.003)
    assert "0.9 in epoch 2 to 4.2" in said and "--lr 0.001" in said
    assert describe_divergence([1.4, 0.9, 1.2], 0.003) == describe_divergence([0.2, 0.01, 0.1], 0.003) == []
    assert describe_divergence([], 0.003) == []


def test_labels_and_numbers_that_fail_are_named() -> None:
    labels = {"label_f1": {"ant": 0.9, "bee": 0.0, "cat": None}}
    assert describe_weak_answers("test", labels) == [
        "test: no image has label 'cat': nothing is measured of it.",
        "test: F1 is 0, as no image that has the label was given it: 'bee'.",
    ]
    (one,) = describe_weak_answers("test", {"mae": 1.0, "r2": -0.25})
    (several,) = describe_weak_answers("test", {"r2": 0.2, "number_r2": {"age": 0.9, "year": -0.5}})
    assert "R² is -0.25:" in one and "R² is -0.5 for 'year':" in several
    for fine in (None, {"accuracy": 0.1}, {"label_f1": {"ant": 0.1}}, {"r2": 0.1}, {"r2": None}):
        assert describe_weak_answers("test", fine) == []


def test_few_validation_images_of_labels_and_numbers_are_called_few() -> None:
    labels = [(0,)] * 20 + [(0, 1)]
    (both,) = describe_small_label_validation(labels, ("ant", "bee"), epochs=3, thresholds=True)
    assert "21 images are too few to choose an epoch and thresholds by: fewer than 10 have 'bee' (1)." in both
    (epoch,) = describe_small_label_validation(labels, ("ant", "bee"), epochs=3, thresholds=False)
    assert "choose an epoch by" in epoch and "half" not in epoch
    assert describe_small_label_validation(labels, ("ant", "bee"), epochs=1, thresholds=False) == []
    assert describe_small_label_validation(labels, ("ant",), epochs=3, thresholds=True) == []
    errors = {"mae": 2.0, "rmse": 5**0.5, "images": 25}  # the standard deviation of the absolute errors is 1
    (numbers,) = describe_small_validation(errors, epochs=3)
    assert "25 images" in numbers and "2 ± 0.39" in numbers
    assert describe_small_validation({**errors, "images": 500}, epochs=3) == []
    assert describe_small_validation(errors, epochs=1) == []
    named = {"number_mae": {"age": 2.0, "year": 1.0}, "number_rmse": {"age": 2.0, "year": 1.5}}
    (worst,) = describe_small_validation({**errors, **named}, epochs=3)
    assert "error of 'year'" in worst
