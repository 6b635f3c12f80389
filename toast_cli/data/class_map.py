"""One class map for all splits: what the training split holds, or what a file says, and every label in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from toast_cli.data.images.files import read_text_file
from toast_cli.data.paths import find_file
from toast_cli.data.splits import format_class_names, require_all_classes_in_train
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from toast_cli.data.images.file_split import FileSplit


def read_class_file(path: str | None, data_dir: Path | None) -> tuple[str, ...] | None:
    """The classes that a file names, in the order of the logits; None where no file is given.

    A class stands on each line; a JSON file holds a list, or an object with `classes`, as an adapter's configuration.

    Raises:
        ToastError: there is no such file, it holds no classes, or one twice.
    """
    if path is None:
        return None
    file = find_file(path, data_dir, "dataset.class_file=FILE")
    try:
        text = read_text_file(file)
        found: Any = json.loads(text) if file.suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise ToastError(f"The class file {file} cannot be read.", str(error), code="data.unreadable-file") from error
    found = found.get("classes") if isinstance(found, dict) else found
    names = tuple(str(name).strip() for name in found or () if str(name).strip()) if isinstance(found, list) else ()
    twice = sorted({name for name in names if names.count(name) > 1})
    if len(names) < 2 or twice:
        raise ToastError(
            f"{file} names {format_class_names(twice)} twice." if twice else f"{file} does not name two classes.",
            what_to_do="Expected is a class on each line, or a JSON list of them.",
            code="data.duplicate-class" if twice else "data.too-few-classes",
        )
    return names


def sort_class_names(labels: Collection[str]) -> tuple[str, ...]:
    """The class map of the names that labels have: sorted, as numbers where all are numbers."""
    if all(map(str.isdecimal, labels)):
        return tuple(sorted(set(labels), key=lambda name: (int(name), name)))  # '01' is another class than '1'
    return tuple(sorted(set(labels)))


def require_known_classes(
    classes: Collection[str], found: Mapping[str, Collection[str]], where: str, origin: str = "train"
) -> None:
    """Check that no split has a label that the class map does not have; `origin` is what the map was made from.

    Raises:
        ToastError: one has; the difference is shown, both ways. Or a class name is no printable text.
    """
    for name in classes:
        if not name.isprintable():
            raise ToastError(
                f"{where}: the class name {name!r} cannot be written down.",
                "It is no UTF-8 text, or holds control characters.",
                "Rename it.",
                code="data.unprintable-class",
            )
    for part, labels in found.items():
        unknown = sorted(set(labels) - set(classes))
        if not unknown:
            continue
        missing = sorted(set(classes) - set(labels))
        raise ToastError(
            f"{where}: {part} holds {format_class_names(unknown)}, which {origin} does not have.",
            f"{origin} has {format_class_names(missing)} beside what both have."
            if missing
            else f"{part} has all of {origin}'s.",
            "Labels must be spelled alike in all splits. Add training images of a class that has none, or remove it."
            if origin == "train"
            else "Mend the file or the labels.",
            code="data.unknown-class",
        )


def check_trainable_classes(train: FileSplit, classes: Sequence[str], where: str, given: bool) -> list[str]:
    """What should be said about classes without a training image: nothing may miss one, unless a file `given` names it.

    Raises:
        ToastError: a class cannot be learned.
    """
    if not given:
        require_all_classes_in_train(train, classes, where)
        return []
    seen = set(train.labels)
    missing = [name for label, name in enumerate(classes) if label not in seen]
    return [f"train: no image of {format_class_names(missing)}, which the class file names"] if missing else []
