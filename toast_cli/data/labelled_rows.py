"""The labels of the rows of a table: one class, several labels or numbers for each image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from toast_cli.data.base import Label, LabelVector
from toast_cli.data.class_map import normalize_class_name, require_known_classes, sort_class_names
from toast_cli.data.labels import (
    MISSING_LABELS,
    describe_merged_labels,
    describe_placeholder_labels,
    describe_suspicious_numbers,
    read_labels,
    select_labelled,
)
from toast_cli.data.splits import TargetOptions, format_class_names, quote_class_name
from toast_cli.utils.errors import ToastError

YES = frozenset(("1", "1.0", "true", "yes"))
NO = frozenset(("0", "0.0", "false", "no"))
"""Texts in a column of one label, in small letters."""

MakeRowError = Callable[[int, str, str], ToastError]
"""Makes the error of a row, given its index, what is wrong with it, and what to do."""


@dataclass(frozen=True)
class LabelledRows:
    """The rows that are read, and their labels.

    Attributes:
        classes: names of the classes, the labels or the numbers.
        rows: indices of the rows of each split that have a label.
        labels: the labels of these rows.
        vector: what the labels become in a batch; None for one class per image.
    """

    classes: tuple[str, ...]
    rows: Mapping[str, Sequence[int]]
    labels: Mapping[str, tuple[Label, ...]]
    vector: LabelVector | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def label_rows(
    cells: Mapping[str, Sequence[Any]],
    rows: Mapping[str, Sequence[int]],
    options: TargetOptions,
    where: str,
    make_error: MakeRowError,
    given: tuple[str, ...] | None,
    listed: tuple[str, ...] = (),
    name_empty_rows: bool = False,
) -> LabelledRows:
    """Read the labels of every row.

    Args:
        cells: The columns of labels or numbers by name, each with the values of all rows.
        rows: The rows of each split.
        options: The options of the source.
        where: The data set, for messages.
        make_error: Makes the error of a row.
        given: The classes that a class file lists.
        listed: The classes that the table itself lists, if any.
        name_empty_rows: Whether the first row with an empty class is named in an error, instead of a count.

    Raises:
        ToastError: A cell is invalid, training images have no label, or a split has a label that is not known.
    """
    if options.target == "number":
        return _read_number_rows(cells, rows, options, where, make_error)
    (column, stored), *_ = cells.items()
    if options.target == "labels" or any(isinstance(value, list | tuple) for value in stored):
        return _read_label_rows(cells, rows, options, where, make_error, given, listed)
    labels = read_labels(stored, given or listed)
    if name_empty_rows and options.on_missing_label == "stop":
        _require_filled_cells(column, stored, labels, rows, make_error)
    kept, notes = select_labelled(labels, rows, stored, options, where)
    texts = {part: [str(labels[index]) for index in indices] for part, indices in kept.items()}
    classes = given or listed or sort_class_names(set(texts["train"]))
    _require_known(classes, texts, where, given)
    label_of = {name: label for label, name in enumerate(classes)}
    warnings = [] if given or listed else describe_suspicious_numbers(classes, len(texts["train"]))
    warnings += [] if given or listed else describe_placeholder_labels(classes)
    numbered = {part: tuple(label_of[text] for text in each) for part, each in texts.items()}
    return LabelledRows(classes, kept, numbered, None, [*notes, *describe_merged_labels(stored, labels)], warnings)


def _require_filled_cells(
    column: str,
    stored: Sequence[Any],
    labels: Sequence[Any],
    rows: Mapping[str, Sequence[int]],
    make_error: MakeRowError,
) -> None:
    """Check that no row has an empty cell, except in splits without any label.

    Raises:
        ToastError: A row has an empty cell.
    """
    labelled = (each for part, each in rows.items() if part == "train" or any(labels[i] for i in each))
    for index in chain.from_iterable(labelled):
        if labels[index] is None and not str("" if stored[index] is None else stored[index]).strip():
            raise make_error(
                index,
                f"column '{column}' is empty",
                "Correct the row, or leave out images without a label with dataset.on_missing_label=skip.",
            )


def _read_label_rows(
    cells: Mapping[str, Sequence[Any]],
    rows: Mapping[str, Sequence[int]],
    options: TargetOptions,
    where: str,
    make_error: MakeRowError,
    given: tuple[str, ...] | None,
    listed: tuple[str, ...],
) -> LabelledRows:
    """Read several labels for each row."""
    warnings = []
    if options.label_columns is not None:
        named, stored = _read_flags(cells, make_error)
    else:
        stored = list(next(iter(cells.values())))
        named = [_split_labels(value, options.label_separator) for value in stored]
        if not any(len(each or ()) > 1 for each in named):
            warnings.append(f"no image has more than one label: is '{options.label_separator}' the separator?")
        for indices in rows.values():
            if not any(named[index] for index in indices):  # a split without labels, not one of images without any
                named = [None if place in set(indices) else each for place, each in enumerate(named)]
    kept, notes = select_labelled(named, rows, stored, options, where)
    texts = {part: [named[index] or () for index in indices] for part, indices in kept.items()}
    columns = tuple(map(normalize_class_name, options.label_columns or ()))
    classes = given or listed or columns or sort_class_names(set(chain.from_iterable(texts["train"])))
    _require_known(classes, {part: set(chain.from_iterable(each)) for part, each in texts.items()}, where, given)
    label_of = {name: label for label, name in enumerate(classes)}
    labels = {
        part: tuple(tuple(sorted(label_of[name] for name in each)) for each in found) for part, found in texts.items()
    }
    counts, always = describe_several_labels(classes, labels)
    notes += counts
    warnings += always
    return LabelledRows(classes, kept, labels, LabelVector("labels", len(classes)), notes, warnings)


def describe_several_labels(classes: Sequence[str], labels: Mapping[str, Sequence[Any]]) -> tuple[list[str], list[str]]:
    """Return notes on images without labels, and a warning of labels that every training image has."""
    notes = [
        f"{part}: {empty:,} of {len(found):,} images have none of the labels"
        for part, found in labels.items()
        if (empty := sum(not each for each in found))
    ]
    always = [name for label, name in enumerate(classes) if all(label in each for each in labels["train"])]
    named = format_class_names(always, target="labels")
    return notes, [f"every training image has {named}: it cannot be learned"] if always else []


def _split_labels(value: Any, separator: str | None) -> tuple[str, ...] | None:
    """Return the labels in a cell, each once; None if it holds a text that stands for a missing label."""
    if isinstance(value, list | tuple):
        return tuple(dict.fromkeys(normalize_class_name(str(each)) for each in value))
    text = normalize_class_name("" if value is None else str(value)).strip()
    if text in MISSING_LABELS - {""}:
        return None
    return tuple(dict.fromkeys(name for each in text.split(separator) if (name := each.strip())))


def _read_flags(
    cells: Mapping[str, Sequence[Any]], make_error: MakeRowError
) -> tuple[list[tuple[str, ...] | None], list[Any]]:
    """Return the labels of every row by columns of yes and no, None if a cell is empty, and the first empty cell."""
    named: list[tuple[str, ...] | None] = []
    stored: list[Any] = []
    for index, row in enumerate(zip(*cells.values(), strict=True)):
        texts = ["" if value is None else str(value).strip() for value in row]
        missing = [text for text in texts if text in MISSING_LABELS]
        for column, text in zip(cells, texts, strict=True):
            if text not in MISSING_LABELS and text.lower() not in YES | NO:
                raise make_error(
                    index,
                    f"column '{column}' holds {quote_class_name(text)}",
                    "Write 1 or 0, true or false, yes or no.",
                )
        present = zip(cells, texts, strict=True)
        labels = tuple(normalize_class_name(column) for column, text in present if text.lower() in YES)
        named.append(None if missing else labels)
        stored.append(missing[0] if missing else labels)
    return named, stored


def _read_number_rows(
    cells: Mapping[str, Sequence[Any]],
    rows: Mapping[str, Sequence[int]],
    options: TargetOptions,
    where: str,
    make_error: MakeRowError,
) -> LabelledRows:
    """Read one or several numbers for each row.

    Raises:
        ToastError: A cell is not a number, or all training images have the same number.
    """
    numbers: list[tuple[float, ...] | None] = []
    stored: list[Any] = []
    for index, row in enumerate(zip(*cells.values(), strict=True)):
        values = [_parse_number(value, index, column, make_error) for column, value in zip(cells, row, strict=True)]
        known = tuple(value for value in values if value is not None)
        numbers.append(known if len(known) == len(values) else None)
        stored.append(row[values.index(None)] if None in values else row)
    kept, notes = select_labelled(numbers, rows, stored, options, where)
    labels = {part: tuple(numbers[index] or () for index in indices) for part, indices in kept.items()}
    ranges, warnings = describe_numbers(tuple(cells), labels["train"], where)
    names = tuple(map(normalize_class_name, cells))
    require_known_classes(names, {}, where)
    return LabelledRows(names, kept, labels, LabelVector("number", len(names)), [*notes, *ranges], warnings)


def describe_numbers(names: Sequence[str], train: Sequence[Any], where: str) -> tuple[list[str], list[str]]:
    """Return notes on the range of every number of training images, and a warning of numbers that look like labels.

    Raises:
        ToastError: All training images have the same number.
    """
    notes = []
    for place, column in enumerate(names):
        trained = [each[place] for each in train]
        if min(trained) == max(trained):
            raise ToastError(
                f"{where}: all training images have the same number in column '{column}'.",
                what_to_do="Add images with other numbers, or leave the column out.",
                code="data.constant-number",
            )
        mean = math.fsum(trained) / len(trained)
        notes.append(f"train: {column} from {min(trained):g} to {max(trained):g}, {mean:.4g} on average")
    looks_like_labels = len(names) > 1 and all(value in (0, 1) for each in train for value in each)
    return notes, ["every number is 0 or 1: are they labels?"] if looks_like_labels else []


def _parse_number(value: Any, index: int, column: str, make_error: MakeRowError) -> float | None:
    """Return the number in a cell; None if it is missing.

    Raises:
        ToastError: The cell holds something else.
    """
    text = "" if value is None else str(value).strip()
    try:
        number = math.nan if text in MISSING_LABELS else float(text)
    except ValueError:
        number = math.inf
    if math.isinf(number):
        point = " Write a point before decimals." if "," in text else ""
        raise make_error(
            index, f"column '{column}' holds {quote_class_name(text)}, not a number", f"Correct it.{point}"
        )
    return None if math.isnan(number) else number


def _require_known(classes: Sequence[str], found: Mapping[str, Any], where: str, given: tuple[str, ...] | None) -> None:
    """Check that every label is in the class map, which a class file may give."""
    used = {part: set(names) for part, names in found.items()}
    require_known_classes(classes, used, where, "the class file" if given else "train")
