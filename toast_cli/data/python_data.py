"""`python`: images and labels that a program gives to `toast_cli.tune` or `toast_cli.evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource, list_label_indices
from toast_cli.data.split_names import SPLITS, parse_split_name
from toast_cli.data.splits import (
    HeldOutSplitOptions,
    complete_splits,
    format_class_names,
    make_train_val_test_splits,
    require_all_classes_in_train,
)
from toast_cli.utils.errors import UsageError

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

    `classes` are the names of the classes, labels or numbers in order; None takes them from the data.
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
            ToastError: labels are not in the class map, a class has no training image, or all numbers are the same.
        """
        from toast_cli.data.labelled_rows import describe_numbers, describe_several_labels
        from toast_cli.data.python_labels import index_labels
        from toast_cli.data.python_split import PythonSplit

        named = self._name_splits()
        given = {part: PythonSplit.from_items(items, f"{WHERE}, {part}") for part, items in named.items()}
        own = self.classes or _get_own_classes(named.get("train"))
        read = index_labels({part: split.given for part, split in given.items()}, own, WHERE)
        splits: dict[str, Any] = {
            part: replace(split, labels=read.labels[part], label_vector=read.vector) for part, split in given.items()
        }
        if not isinstance(self.data, Mapping):
            made, notes = make_train_val_test_splits(splits["train"], options)
        elif "train" in splits:
            made, notes = complete_splits(splits, options, WHERE)
        else:  # only to be measured
            return DataSet(read.classes, splits, target=read.target)
        warnings = list[str]()
        about = list[str]()
        if read.target == "number":
            about, warnings = describe_numbers(read.classes, read.labels["train"], WHERE)
        else:
            about = _describe_missing_classes(made["train"], read.classes, own is not None)
        if read.target == "labels":
            counts, warnings = describe_several_labels(read.classes, read.labels)
            about += counts
        return DataSet(read.classes, made, (*about, *notes), tuple(warnings), target=read.target)

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


def _describe_missing_classes(train: Any, classes: Sequence[str], given: bool) -> list[str]:
    """Return a note on classes without a training image, which are allowed only if classes are `given`.

    Raises:
        ToastError: none are given, and there is a single class or a class without a training image.
    """
    if not given:
        require_all_classes_in_train(train, classes, WHERE)
        return []
    present = set(chain.from_iterable(map(list_label_indices, train.labels)))
    missing = [name for label, name in enumerate(classes) if label not in present]
    return [f"train: no image of {format_class_names(missing)}"] if missing else []
