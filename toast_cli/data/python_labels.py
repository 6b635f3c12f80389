"""Labels given in Python: a class, several labels or numbers for each image.

An `int` is the index of a class and a `str` its name. A list, tuple or set of either is several labels, which may be
none. A vector of zeros and ones, as an array, a tensor or a list of `bool`, has a place for every class. A `float`, or
a list, tuple or array of them, is a target of regression.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from toast_cli.data.base import Label, LabelVector
from toast_cli.data.class_map import normalize_class_name, require_known_classes, sort_class_names
from toast_cli.utils.errors import ToastError, UsageError

GivenLabel: TypeAlias = (
    "int | str | tuple[()] | tuple[int, ...] | tuple[str, ...] | tuple[bool, ...] | tuple[float, ...]"
)
"""A label as it is given, with values of NumPy and PyTorch as those of Python."""

Target = Literal["class", "labels", "number"]

TARGETS: Mapping[str, Target] = {
    "the index of a class": "class",
    "the name of a class": "class",
    "indices of labels": "labels",
    "names of labels": "labels",
    "zeros and ones": "labels",
    "numbers": "number",
}
"""What labels are learned as, by what they are."""

SEVERAL = {int: "indices of labels", str: "names of labels", bool: "zeros and ones", float: "numbers"}

ONLY_NUMBER = "number"
"""Name of a single number per image that has no other name."""


@dataclass(frozen=True)
class IndexedLabels:
    """The labels of all splits as indices or numbers.

    Attributes:
        classes: names of the classes, the labels or the numbers.
        labels: the labels of each split.
        vector: what the labels become in a batch; None for one class per image.
    """

    classes: tuple[str, ...]
    labels: Mapping[str, tuple[Label, ...]]
    vector: LabelVector | None

    @property
    def target(self) -> Target:
        """What the labels are learned as."""
        return "class" if self.vector is None else self.vector.target


def read_given_label(label: Any, where: str) -> GivenLabel:
    """Return a label with values of Python; several labels are sorted.

    Raises:
        UsageError: it is not a class, labels or numbers.
    """
    label = _to_python(label)
    if isinstance(label, str):
        return normalize_class_name(label)
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    if isinstance(label, float | list | tuple | set | frozenset):
        is_list = not isinstance(label, set | frozenset)
        entries = [_to_python(each) for each in ([label] if isinstance(label, float) else label)]
        kinds = set(map(type, entries))
        if kinds == {str}:
            return tuple(sorted(set(map(normalize_class_name, entries))))
        if kinds <= {int} and len(set(entries)) == len(entries):  # a list of zeros and ones repeats them
            return tuple(sorted(entries))
        if is_list and (kinds == {bool} or (kinds == {float} and all(map(math.isfinite, entries)))):
            return tuple(entries)
    raise UsageError(
        f"Expected a class, labels or numbers as the label of {where}, got {label!r}.",
        what_to_do="Give the name of the class or its index counted from 0, a list of these, each once, or floats. "
        "Give zeros and ones as an array, a tensor or a list of bool.",
        code="data.invalid-label",
    )


def _to_python(label: Any) -> Any:
    """Return the values of an array or a tensor, whose integers are zeros and ones: indices are given as a list."""
    if not hasattr(label, "tolist") or getattr(label, "ndim", None) not in (0, 1):
        return label
    values = label.tolist()
    if not isinstance(values, list) or any(type(each) is not int for each in values):
        return values
    return list(map(bool, values)) if set(values) <= {0, 1} else label


def index_labels(given: Mapping[str, tuple[GivenLabel, ...]], own: tuple[str, ...] | None, where: str) -> IndexedLabels:
    """Return the labels of every split as indices of the class map `own`, or of the one that the labels make.

    Raises:
        UsageError: labels are of different kinds, do not fit the classes, or need names.
        ToastError: a label is not the name of a class.
    """
    kinds = {part: _find_kind(labels, f"{where}, {part}") for part, labels in given.items()}
    targets = {part: "labels" if kind is None else TARGETS[kind] for part, kind in kinds.items() if given[part]}
    target: Any = next(iter(targets.values()), "class")
    if other := [part for part, found in targets.items() if found != target]:
        first = next(iter(targets))
        raise UsageError(
            f"{where}: {first} has {kinds[first] or 'no labels'} and {other[0]} has {kinds[other[0]] or 'no labels'}.",
            what_to_do="Give labels of one kind in all splits.",
            code="data.invalid-label",
        )
    classes = own or (_name_numbers(given, where) if target == "number" else _find_classes(given, where))
    if target != "class" and not given.get("train", "measured"):
        raise ToastError(
            f"{where}, train: there are no images.",
            what_to_do="Give images to train on, or leave 'train' out to measure the others.",
            code="data.no-images",
        )
    if target == "labels" and not classes:
        raise ToastError(
            f"{where}: no image has a label.",
            what_to_do="Give labels, or name them in order: classes=[...].",
            code="data.too-few-classes",
        )
    if target == "number":
        require_known_classes(classes, {}, where)
    origin = "the classes" if own or "train" not in given else "train"
    place = {name: index for index, name in enumerate(classes)}
    indexed: dict[str, tuple[Label, ...]] = {}
    for part, labels in given.items():
        named = {each for label in labels for each in _list_entries(label) if isinstance(each, str)}
        require_known_classes(classes, {part: named} if named else {}, where, origin)
        indexed[part] = tuple(
            _index_label(label, place, f"item {number} of {where}, {part}") for number, label in enumerate(labels)
        )
    return IndexedLabels(classes, indexed, None if target == "class" else LabelVector(target, len(classes)))


def _list_entries(label: GivenLabel) -> tuple[Any, ...]:
    return label if isinstance(label, tuple) else (label,)


def _describe_kind(label: GivenLabel) -> str | None:
    """Return what a label is; None if it is an empty list, which is several labels of any kind."""
    if isinstance(label, tuple):
        return SEVERAL[type(label[0])] if label else None
    return "the name of a class" if isinstance(label, str) else "the index of a class"


def _find_kind(labels: Sequence[GivenLabel], where: str) -> str | None:
    """Return what the labels of a split are; None if none of its images has labels.

    Raises:
        UsageError: they are of different kinds.
    """
    first: dict[str | None, int] = {}
    for number, label in enumerate(labels):
        first.setdefault(_describe_kind(label), number)
    kinds = [kind for kind in first if kind is not None]
    if len(kinds) != 1 or TARGETS[kinds[0]] == "labels":
        first.pop(None, None)
    if len(first) > 1:
        (one, start), (other, number), *_ = first.items()
        raise UsageError(
            f"{where}: item {start} has {one or 'no labels'}, and item {number} has {other or 'no labels'}.",
            what_to_do="Give every image a label of the same kind, for example lists of names; write numbers as "
            "floats.",
            code="data.invalid-label",
        )
    return next(iter(kinds), None)


def _find_classes(given: Mapping[str, Sequence[GivenLabel]], where: str) -> tuple[str, ...]:
    """Return the classes of data that has none of its own: the names in train, or a number for every index.

    Raises:
        UsageError: labels are zeros and ones.
    """
    entries = {part: [each for label in labels for each in _list_entries(label)] for part, labels in given.items()}
    every = [each for found in entries.values() for each in found]
    if any(isinstance(each, bool) for each in every):
        raise UsageError(
            f"{where}: the labels are zeros and ones without names.",
            what_to_do="Name the labels in order: classes=[...], or give lists of labels.",
            code="data.invalid-label",
        )
    if not any(isinstance(each, str) for each in every):
        return tuple(map(str, range(max(every, default=-1) + 1)))
    return sort_class_names({each for each in entries.get("train", every) if isinstance(each, str)})


def _name_numbers(given: Mapping[str, Sequence[GivenLabel]], where: str) -> tuple[str, ...]:
    """Return the name of a number that was given none.

    Raises:
        UsageError: there are several numbers.
    """
    if all(len(_list_entries(label)) == 1 for labels in given.values() for label in labels):
        return (ONLY_NUMBER,)
    raise UsageError(
        f"{where}: the images have several numbers without names.",
        what_to_do='Name the numbers in order: classes=["age", "weight"].',
        code="data.invalid-label",
    )


def _index_label(label: GivenLabel, place: Mapping[str, int], where: str) -> Label:
    """Return a label as the index of its class, the indices of its labels, or its numbers.

    Raises:
        UsageError: it does not fit the classes.
    """
    if isinstance(label, str):
        return place[label]
    entries = _list_entries(label)
    if isinstance(next(iter(entries), 0), bool | float):
        if len(entries) != len(place):
            raise UsageError(
                f"The label of {where} has {len(entries)} values, and {len(place)} are named.",
                what_to_do="Give every image a value for each name in 'classes'.",
                code="data.invalid-label",
            )
        return entries if type(entries[0]) is float else tuple(i for i, present in enumerate(entries) if present)
    indices = tuple(sorted(place[each] if isinstance(each, str) else each for each in entries))
    if outside := [index for index in indices if not 0 <= index < len(place)]:
        raise UsageError(
            f"The label {outside[0]} of {where} is not the index of a class.",
            f"There are {len(place)} classes, with the indices 0 to {len(place) - 1}.",
            "Count classes from 0, or give their names as labels. Write numbers as floats.",
            code="data.invalid-label",
        )
    return indices if isinstance(label, tuple) else label
