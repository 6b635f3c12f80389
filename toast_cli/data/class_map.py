"""The class map shared by all splits: the classes of the training split, or those that a file lists."""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any
from unicodedata import category, normalize

from toast_cli.data.base import list_label_indices
from toast_cli.data.images.files import read_text_file
from toast_cli.data.paths import find_file
from toast_cli.data.splits import format_class_names, quote_class_name, require_all_classes_in_train
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from toast_cli.data.images.labelled_files import FileSplit

VARIATION_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))
"""Invisible characters that select a form of the character before them."""

JOINERS = {0x200C: None, 0x200D: None}
"""The zero-width non-joiner and joiner, which belong to the spelling of Persian and Hindi words and of emoji."""


def read_class_file(path: str | None, data_dir: Path | None) -> tuple[str, ...] | None:
    """Return the classes that a file lists, in the order of the logits; None if `path` is None.

    A text file has one class per line. A JSON file contains a list, or an object with the key `classes`, such as the
    configuration of an adapter.

    Raises:
        ToastError: the file does not exist, cannot be read, lists fewer than two classes, or lists a class twice.
    """
    if path is None:
        return None
    file = find_file(path, data_dir, "dataset.class_file=FILE")
    try:
        text = read_text_file(file)
        content: Any = (
            json.loads(text) if file.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
        )
    except (OSError, ValueError) as error:
        raise ToastError(f"Cannot read the class file {file}.", str(error), code="data.unreadable-file") from error
    listed = content.get("classes") if isinstance(content, dict) else content
    given = map(normalize_class_name, map(str, listed)) if isinstance(listed, list) else ()
    names = tuple(name for name in given if name.strip())
    repeated = sorted({name for name in names if names.count(name) > 1})
    if len(names) < 2 or repeated:
        raise ToastError(
            f"{file} lists {format_class_names(repeated)} more than once."
            if repeated
            else f"{file} lists fewer than two classes.",
            what_to_do="List each class once: one per line, or as a JSON list.",
            code="data.duplicate-class" if repeated else "data.too-few-classes",
        )
    return names


def normalize_class_name(name: str) -> str:
    """Return a class name in the composed form of Unicode (NFC): systems write one name in several forms."""
    return normalize("NFC", name)


def normalize_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names in the composed form of Unicode; unchanged if two of them would then be equal."""
    composed = tuple(map(normalize_class_name, names))
    return composed if len(set(composed)) == len(set(names)) else tuple(names)


def describe_similar_classes(classes: Sequence[str]) -> list[str]:
    """Return a warning for every class that differs from an earlier one only in capitals, blanks or invisible signs."""
    first: dict[str, str] = {}
    warnings = []
    for name in classes:
        earlier = first.setdefault(_get_visible_form(name), name)
        if earlier != name:
            warnings.append(
                f"classes {quote_class_name(earlier)} and {quote_class_name(name)} differ only in "
                f"{_describe_difference(earlier, name)}: are they one class?"
            )
    return warnings


def _get_visible_form(name: str) -> str:
    """Return a name without capitals, invisible characters and repeated blanks."""
    signs = normalize("NFKC", name)
    shown = "".join(sign for sign in signs if category(sign) != "Cf" and sign not in VARIATION_SELECTORS)
    return " ".join(shown.split()).casefold()


def _describe_difference(one: str, other: str) -> str:
    if one.casefold() == other.casefold():
        return "capitals"
    if one.split() == other.split():
        return "blanks"
    return "capitals, blanks or invisible characters"


def sort_class_names(labels: Collection[str]) -> tuple[str, ...]:
    """Return the distinct labels in sorted order; numerically if all of them are numbers."""
    if all(map(str.isdecimal, labels)):
        return tuple(sorted(set(labels), key=lambda name: (int(name), name)))  # '01' and '1' are different classes
    return tuple(sorted(set(labels)))


def require_known_classes(
    classes: Collection[str], found: Mapping[str, Collection[str]], where: str, origin: str = "train"
) -> None:
    """Check that every label of every split is in the class map.

    Args:
        classes: the class map.
        found: the labels of each split.
        where: the data set, for messages.
        origin: where the class map comes from, for messages.

    Raises:
        ToastError: a split has an unknown label (the message lists the differences in both directions), or a class
            name is not printable.
    """
    for name in classes:
        visible = name.translate(JOINERS)
        if not visible.isprintable() or (name and not visible):
            raise ToastError(
                f"{where}: the class name {name!r} is not printable.",
                "It is not valid UTF-8, or contains control characters or invisible ones (such as \\xa0, a blank that "
                "does not break).",
                "Rename the class.",
                code="data.unprintable-class",
            )
    by_form = {_get_visible_form(name): name for name in classes}
    for part, labels in found.items():
        unknown = sorted(set(labels) - set(classes))
        if not unknown:
            continue
        missing = sorted(set(classes) - set(labels))
        similar = [
            f"{quote_class_name(name)} differs from {quote_class_name(known)} only in "
            f"{_describe_difference(name, known)}."
            for name in unknown
            if (known := by_form.get(_get_visible_form(name))) is not None
        ]
        raise ToastError(
            f"{where}: {part} has {format_class_names(unknown)}, missing from {origin}.",
            (
                f"{part} does not have {format_class_names(missing)}."
                if missing
                else f"{part} has all classes of {origin}.",
                *similar[:5],
            ),
            "Spell labels alike in all splits, and add training images of every class or remove the class."
            if origin == "train"
            else "Correct the class file or the labels.",
            code="data.unknown-class",
        )


def check_trainable_classes(train: FileSplit, classes: Sequence[str], where: str, given: bool) -> list[str]:
    """Return notes about classes without a training image, which are allowed only if a class file is `given`.

    Raises:
        ToastError: no class file is given, and there is a single class or a class without a training image.
    """
    if not given:
        require_all_classes_in_train(train, classes, where)
        return []
    present = set(chain.from_iterable(map(list_label_indices, train.labels)))
    missing = [name for label, name in enumerate(classes) if label not in present]
    return [f"train: no image of {format_class_names(missing)}, which the class file lists"] if missing else []
