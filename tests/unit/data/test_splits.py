from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.splits import SplitOptions, compute_split_hash, hold_out, make_train_val_splits, select_shots


def names_and_labels(*class_sizes: int) -> tuple[list[str], list[int]]:
    labels = [label for label, size in enumerate(class_sizes) for _ in range(size)]
    return [f"{label}/{place}.jpg" for place, label in enumerate(labels)], labels


def test_the_same_share_of_every_class_is_held_out() -> None:
    names, labels = names_and_labels(100, 20, 10)
    kept, held = hold_out(names, labels, 0.1, seed=0)
    assert Counter(labels[i] for i in held) == {0: 10, 1: 2, 2: 1}
    assert sorted(kept + held) == list(range(130))


@pytest.mark.parametrize(
    ("size", "fraction", "leave", "expected"),
    [
        (1, 0.5, 1, 0),
        (2, 0.01, 1, 1),
        (2, 0.99, 1, 1),
        (3, 0.99, 1, 2),
        (2, 0.5, 2, 0),
        (3, 0.99, 2, 1),
        (10, 0.25, 1, 3),
        (10, 0.0, 1, 0),
    ],
)
def test_a_small_class_gives_one_image_and_keeps_what_it_must(
    size: int, fraction: float, leave: int, expected: int
) -> None:
    kept, held = hold_out(*names_and_labels(size), fraction, seed=0, leave=leave)
    assert (len(kept), len(held)) == (size - expected, expected)


def test_the_order_of_the_files_does_not_change_the_split() -> None:
    names, labels = names_and_labels(15, 15)
    held = {names[i] for i in hold_out(names, labels, 0.2, seed=3)[1]}
    shuffled = list(zip(names, labels, strict=True))
    random.Random(1).shuffle(shuffled)
    names, labels = [name for name, _ in shuffled], [label for _, label in shuffled]
    assert {names[i] for i in hold_out(names, labels, 0.2, seed=3)[1]} == held


def test_the_split_is_pinned_so_that_old_results_stay_comparable() -> None:
    names, labels = names_and_labels(6, 6)
    assert hold_out(names, labels, 0.34, seed=0)[1] == [3, 5, 9, 10]
    assert compute_split_hash(names, labels) == "e8cdf5f0"


def test_another_seed_makes_another_split() -> None:
    names, labels = names_and_labels(50)
    assert hold_out(names, labels, 0.2, seed=0) != hold_out(names, labels, 0.2, seed=1)


def test_a_drawn_image_does_not_depend_on_its_place_in_the_class() -> None:
    names, labels = names_and_labels(1000)
    held = hold_out(names, labels, 0.5, seed=0)[1]
    assert 200 < sum(i < 500 for i in held) < 300


def test_fewer_shots_are_a_subset_of_more() -> None:
    names, labels = names_and_labels(9, 4, 2)
    three, five = (select_shots(names, labels, shots, seed=0) for shots in (3, 5))
    assert Counter(labels[i] for i in three) == {0: 3, 1: 3, 2: 2}
    assert set(three) < set(five)


def test_the_hash_tells_images_and_labels_apart_but_not_their_order() -> None:
    assert compute_split_hash(["a", "b"], [0, 1]) == compute_split_hash(["b", "a"], [1, 0])
    assert compute_split_hash(["a", "b"], [0, 1]) != compute_split_hash(["a", "b"], [1, 0])
    assert compute_split_hash(["a", "b"], [0, 1]) != compute_split_hash(["a", "c"], [0, 1])
    assert len(compute_split_hash(["a"], [0])) == 8


def test_a_name_that_is_no_utf8_can_be_split() -> None:
    assert hold_out(["a/\udcff.jpg", "a/b.jpg"], [0, 0], 0.5, seed=0)[1] in ([0], [1])


def test_shots_are_drawn_after_validation_so_that_it_stays_the_same() -> None:
    train = FileSplit(Path(), *map(tuple, names_and_labels(20, 20)))  # type: ignore[arg-type]
    full, _ = make_train_val_splits(train, None, SplitOptions(name="any"))
    few, notes = make_train_val_splits(train, None, SplitOptions(name="any", shots=4))
    assert few["val"] == full["val"]
    assert len(few["train"]) == 8
    assert not set(few["train"].names) & set(few["val"].names)
    assert "4 images per class" in notes[1]
    assert compute_split_hash(few["train"].names, few["train"].labels) in notes[1]


def test_classes_with_too_few_images_for_the_shots_are_counted_in_the_note() -> None:
    train = FileSplit(Path(), *map(tuple, names_and_labels(20, 3, 2)))  # type: ignore[arg-type]
    _, notes = make_train_val_splits(train, train, SplitOptions(name="any", shots=5))
    assert "2 classes have fewer" in notes[0]


def test_a_validation_fraction_of_zero_means_no_validation() -> None:
    train = FileSplit(Path(), *map(tuple, names_and_labels(20, 20)))  # type: ignore[arg-type]
    splits, notes = make_train_val_splits(train, None, SplitOptions(name="any", val_fraction=0))
    assert splits == {"train": train}
    assert "none was held out" in notes[0]
