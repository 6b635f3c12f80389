"""Labels as tables store them: names, numbers, and what stands for a missing label."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from toast_cli.data.class_map import normalize_class_name
from toast_cli.data.splits import TargetOptions, quote_class_name
from toast_cli.utils.errors import ToastError

MISSING_LABELS = frozenset(
    (
        *("", "?", "#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "n/a", "NA", "-NaN", "-nan", "NaN", "NAN", "nan", "NaT"),
        *("NULL", "Null", "null", "None"),
    )
)
"""Texts that stand for a missing label: those of pandas, and a few of other programs."""

FEW_IMAGES = 3
"""Mean number of images per class up to which numbers look like measurements instead of classes."""

MANY_NUMBERS = 20
"""Number of distinct labels above which numbers with fractions look like measurements instead of classes."""

MAX_NAMED = 3
"""Number of spellings of a kind that a message names."""

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+")
_PLACEHOLDER = re.compile(r"[-\u2010-\u2015\u2212_.]+|[-\u2212]\d+")
_WHOLE_NUMBER = re.compile(r"\A([+-]?\d+)\.0*\Z")
"""A whole number with a decimal point: `1.` or `1.0`, and not the beginning of `1.5`."""


def read_labels(values: Sequence[Any], classes: Collection[str] = ()) -> list[str | None]:
    """Return the class name of every value; None if it stands for a missing label.

    A missing label is empty or not a number, a text of `MISSING_LABELS`, or the only negative number among class
    numbers. Where some numbers are written as `1` and others as `1.0`, they are the same class.

    Args:
        values: the labels of all splits, as they are stored.
        classes: the classes that a class file lists; none of them is a missing label.
    """
    texts = [normalize_class_name("" if value is None else str(value)) for value in values]
    found = set(texts)
    missing = {text for text in found if text.strip().strip("\u200b\ufeff\u200c\u200d\u2060") in MISSING_LABELS}
    numbers = {text: _parse_integer(text) for text in found - missing}
    if numbers and None not in numbers.values():
        missing |= _find_missing_number({text: number for text, number in numbers.items() if number is not None})
        if any(_INTEGER.fullmatch(text.strip()) for text in numbers):
            texts = [_WHOLE_NUMBER.sub(r"\1", text.strip()) if text in numbers else text for text in texts]
            missing = {_WHOLE_NUMBER.sub(r"\1", text) for text in missing}
    missing -= set(classes)
    return [None if text in missing else text for text in texts]


def read_decimal_commas(values: Sequence[Any]) -> list[Any] | None:
    """Return the values of a column of numbers with points for decimal commas; None if it has none for certain.

    A comma may separate thousands instead: then there is a decimal point too, a second comma, or there are three digits
    after every comma.
    """
    texts = [value.strip() if isinstance(value, str) else "" for value in values]
    numbers = [text for text in texts if "," in text]
    if any("." in text for text in texts) or not all(map(_DECIMAL_COMMA.fullmatch, numbers)):
        return None
    if all(map(_THOUSANDS.fullmatch, numbers)):
        return None
    return [text.replace(",", ".") if "," in text else value for text, value in zip(texts, values, strict=True)]


def select_labelled(
    labels: Sequence[Any],
    rows: Mapping[str, Sequence[int]],
    stored: Sequence[Any],
    options: TargetOptions,
    where: str,
) -> tuple[dict[str, list[int]], list[str]]:
    """Return the rows of each split that are read, and notes on rows without a label.

    A validation or test split without any label is not read. With `on_missing_label=skip`, only the rows without a
    label are left out.

    Args:
        labels: the label of every row, or None.
        rows: the rows of each split, as indices of `labels`.
        stored: the labels as they are stored.
        options: the options of the source.
        where: the data set, for messages.

    Raises:
        ToastError: training images have no label, or only some images of another split have one.
    """
    kept: dict[str, list[int]] = {}
    notes = []
    for part, indices in rows.items():
        kept[part] = [index for index in indices if labels[index] is not None]
        left_out = [number for number, index in enumerate(indices) if labels[index] is None]
        if not left_out:
            continue
        verb = "has" if len(left_out) == 1 else "have"
        what = f"{len(left_out):,} of {len(indices):,} images {verb} no label"
        counts = Counter(_describe_missing(stored[indices[number]]) for number in left_out)
        which = ", ".join(
            f"{text} ({count:,})" if len(counts) > 1 else text for text, count in counts.most_common(MAX_NAMED)
        )
        which += f" and {len(counts) - MAX_NAMED:,} more" if len(counts) > MAX_NAMED else ""
        listed = ", ".join(f"{number + 1:,}" for number in left_out[:5]) + (", …" if len(left_out) > 5 else "")
        place = f"{which}; {'row' if len(left_out) == 1 else 'rows'} {listed} of {part}"
        if options.on_missing_label == "skip" and kept[part]:
            notes.append(f"{part}: {what}, left out ({place})")
        elif part == "train" or kept[part]:
            number = options.target == "number"
            raise ToastError(
                f"{where}, {part}: {what}.",
                f"Instead of a {'number' if number else 'label'}, there is {place}.",
                "Add the numbers, or leave these images out with dataset.on_missing_label=skip."
                if number
                else "Add the labels, leave these images out with dataset.on_missing_label=skip, or name another "
                "column: dataset.label_column=NAME. If it is the name of a class, list all classes in a "
                "dataset.class_file.",
                code="data.unlabelled-images",
            )
        else:
            notes.append(f"{part}: not read, {what} ({place})")
            del kept[part]
    return kept, notes


def describe_suspicious_numbers(labels: Collection[str], images: int) -> list[str]:
    """Return warnings if some of the labels of `images` images are the same number, or look like measurements."""
    spellings: dict[Decimal, list[str]] = {}
    for label in labels:
        if _NUMBER.fullmatch(label.strip()):
            spellings.setdefault(Decimal(label.strip()), []).append(label)
    equal = [f"classes {_quote_all(same)} are the same number" for same in spellings.values() if len(same) > 1]
    found = [f"{_join_named(equal)}: are they one class?"] if equal else []
    return [*found, *_describe_measurements(labels, images)]


def describe_merged_labels(stored: Sequence[Any], labels: Sequence[str | None]) -> list[str]:
    """Return a note if `read_labels` read several spellings as one class."""
    spellings: dict[str, dict[str, None]] = {}
    for value, label in zip(stored, labels, strict=True):
        if label is not None:
            spellings.setdefault(label, {})[normalize_class_name(str(value))] = None
    merged = [
        f"{_quote_all(texts)} as class {quote_class_name(label)}"
        for label, texts in spellings.items()
        if len(texts) > 1
    ]
    return [f"labels in several spellings: read {_join_named(merged)}"] if merged else []


def _quote_all(texts: Iterable[str]) -> str:
    return ", ".join(map(quote_class_name, texts))


def _join_named(sentences: Sequence[str]) -> str:
    more = f"; and {len(sentences) - MAX_NAMED:,} more" if len(sentences) > MAX_NAMED else ""
    return "; ".join(sentences[:MAX_NAMED]) + more


def _describe_measurements(labels: Collection[str], images: int) -> list[str]:
    try:
        values = [float(label) for label in labels]
    except ValueError:
        return []
    has_fractions = any(value != int(value) for value in values if abs(value) < 1e15)
    few = images / max(len(values), 1) <= FEW_IMAGES
    if len(values) < 5 or not (few or (has_fractions and len(values) > MANY_NUMBERS)):
        return []
    return [
        f"the labels are {len(values):,} different numbers for {images:,} images, from {min(values):g} to "
        f"{max(values):g}: a measurement? Every number is learned as a class of its own"
    ]


def describe_placeholder_labels(labels: Collection[str]) -> list[str]:
    """Return a warning if a label is a negative number, or only dashes or dots, and the others are words.

    Where another label is made of signs too, such as `+` beside `-`, both are classes.
    """
    signs = [label for label in labels if not any(character.isalnum() for character in label)]
    numbers = [label for label in labels if not any(character.isalpha() for character in label)]
    signs = signs or (numbers if len(numbers) < len(labels) else [])
    if len(signs) != 1 or len(labels) == 1 or not _PLACEHOLDER.fullmatch(signs[0].strip()):
        return []
    return [
        f"'{signs[0]}' is learned as a class: does it stand for a missing label? If so, empty these cells and set "
        "dataset.on_missing_label=skip, or add the labels; if not, list all classes in a dataset.class_file"
    ]


def _parse_integer(text: str) -> int | None:
    text = _WHOLE_NUMBER.sub(r"\1", text.strip())
    return int(text) if _INTEGER.fullmatch(text) and text.isascii() else None


def _find_missing_number(numbers: Mapping[str, int]) -> set[str]:
    """Return the spellings of the only negative number among others; none if it is one of two classes, -1 and 1."""
    negative, others = ({number for number in numbers.values() if (number < 0) == sign} for sign in (True, False))
    if len(negative) != 1 or not others or others == {-number for number in negative}:
        return set()
    return {text for text, number in numbers.items() if number in negative}


def _describe_missing(value: Any) -> str:
    text = "" if value is None else str(value)
    return f"'{text}'" if text.strip() else "an empty cell"
