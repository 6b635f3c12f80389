"""`python`: images and labels that a program gives to `toast_cli.tune` or `toast_cli.evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.split_names import SPLITS, parse_split_name
from toast_cli.data.splits import (
    HeldOutSplitOptions,
    complete_splits,
    format_class_names,
    make_train_val_test_splits,
    require_all_classes_in_train,
)
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.data.python_split import PythonSplit

WHERE = "the data"


class PythonDataOptions(HeldOutSplitOptions):
    """Options of data given in Python."""

    name: Literal["python"] = Field("python", description="data given in Python")


def refuse_to_open(options: PythonDataOptions, data_dir: Path | None) -> NoReturn:
    """Refuse to open data that only a program has.

    Raises:
        UsageError: Always.
    """
    raise UsageError(
        "The data was given in Python and not by name, so no command can open it.",
        what_to_do="Name a data set of the same classes with --dataset, or pass the data again in Python: "
        "toast_cli.evaluate(RUN, DATA), toast_cli.tune(dataset=DATA, resume=RUN).",
        code="data.given-in-python",
    )


SOURCE = DataSource(PythonDataOptions, refuse_to_open, "nothing on disk: images and labels given to toast_cli.tune")


@dataclass(frozen=True)
class PythonData:
    """Images and labels given in Python: one list or `Dataset`, or a mapping of splits.

    `classes` are the class names in order; None takes them from the data. Integer labels are indices of classes.
    """

    data: Any
    classes: tuple[str, ...] | None = None

    def make_source(self) -> DataSource:
        """Return the source that opens this data."""
        return replace(SOURCE, open=self.open)

    def open(self, options: PythonDataOptions, data_dir: Path | None) -> DataSet:
        """Return the data set, with the splits that are missing held out.

        Raises:
            UsageError: an item is not an image with a label, or a split has an unknown name.
            ToastError: labels are not in the class map, or a class has no training image.
        """
        from toast_cli.data.python_split import PythonSplit

        named = self._name_splits()
        given = {part: PythonSplit.from_items(items, f"{WHERE}, {part}") for part, items in named.items()}
        own = self.classes or _get_own_classes(named.get("train"))
        classes = own or _find_classes(given)
        splits: dict[str, Any] = {part: _index_labels(split, classes, part) for part, split in given.items()}
        if not isinstance(self.data, Mapping):
            made, notes = make_train_val_test_splits(splits["train"], options)
        elif "train" in splits:
            made, notes = complete_splits(splits, options, WHERE)
        else:  # only to be measured
            return DataSet(classes, splits)
        if own is None:
            require_all_classes_in_train(made["train"], classes, WHERE)
        elif missing := [name for label, name in enumerate(classes) if label not in made["train"].labels]:
            notes.insert(0, f"train: no image of {format_class_names(missing)}")
        return DataSet(classes, made, tuple(notes))

    def _name_splits(self) -> dict[str, Any]:
        """Return the splits by their names in toast."""
        if not isinstance(self.data, Mapping):
            return {"train": self.data}
        named: dict[str, Any] = {}
        for name, items in self.data.items():
            meaning = parse_split_name(str(name))
            split = None if meaning is None else meaning.split
            if split not in SPLITS or split in named:
                raise UsageError(
                    f"Two splits of the data are named '{split}'."
                    if split in named
                    else f"The data has a split of unknown name: {name!r}.",
                    what_to_do="Name the splits train, val and test.",
                    code="data.unknown-split",
                )
            named[split] = items
        return named


def _get_own_classes(data: Any) -> tuple[str, ...] | None:
    """Return the `classes` of a `Dataset`, as torchvision's have them; None if it has none."""
    from toast_cli.data.class_map import normalize_class_names

    found = getattr(data, "classes", None)
    if found is None and hasattr(data, "indices"):  # of torch.utils.data.Subset
        return _get_own_classes(getattr(data, "dataset", None))
    if not isinstance(found, list | tuple) or not found or not all(isinstance(name, str) for name in found):
        return None
    return normalize_class_names(found)


def _find_classes(given: Mapping[str, PythonSplit]) -> tuple[str, ...]:
    """Return the classes of a data set that has none of its own: the names in train, or a number for every index."""
    from toast_cli.data.class_map import sort_class_names

    labels = [label for split in given.values() for label in split.given]
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        return tuple(map(str, range(max(numbers, default=-1) + 1)))
    named = given["train"].given if "train" in given else labels
    return sort_class_names({str(label) for label in named if not isinstance(label, int)})


def _index_labels(split: PythonSplit, classes: tuple[str, ...], part: str) -> PythonSplit:
    """Return the split with the class index of every sample.

    Raises:
        UsageError: a label is not the index of a class, or some labels are numbers and others are names.
        ToastError: a label is not the name of a class.
    """
    from toast_cli.data.class_map import require_known_classes

    kinds = {type(label) for label in split.given}
    if len(kinds) > 1:
        raise UsageError(
            f"{WHERE}, {part}: some labels are integers and others are texts.",
            what_to_do="Give either the indices of the classes or their names.",
            code="data.invalid-label",
        )
    if kinds == {str}:
        origin = "train" if part != "train" else "the classes"
        require_known_classes(classes, {part: [str(label) for label in split.given]}, WHERE, origin)
        place = {name: index for index, name in enumerate(classes)}
        return replace(split, labels=tuple(place[str(label)] for label in split.given))
    outside = [label for label in split.given if isinstance(label, int) and not 0 <= label < len(classes)]
    if outside:
        raise UsageError(
            f"{WHERE}, {part}: the label {outside[0]} is not the index of a class.",
            f"There are {len(classes)} classes, with the indices 0 to {len(classes) - 1}.",
            "Count classes from 0, or give their names as labels.",
            code="data.invalid-label",
        )
    return replace(split, labels=tuple(label for label in split.given if isinstance(label, int)))
