"""Splits for data sets that come without them, held out per class, reproducible on every machine.

The images of each class are ordered by a hash of the seed and the image's name, and splits are taken from the front.
Images with several labels are stratified (see `stratification`); images with numbers are taken from the front of all.
The result depends neither on the order in which a file system lists files nor on the version of Python.
"""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, Literal
from unicodedata import normalize

from pydantic import Field, model_validator

from toast_cli.data.base import get_label_vector, list_label_indices
from toast_cli.data.split_names import SplitNames
from toast_cli.data.stratification import draw_per_label
from toast_cli.utils.config import LOCAL_PATH, NamedOptions
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.hashing import hash_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from toast_cli.data.base import Label, Split
    from toast_cli.data.images.labelled_files import FileSplit


class SplitOptions(NamedOptions):
    """Options of the splits that a source on disk makes itself."""

    val_fraction: float = Field(
        0.1, ge=0, lt=1, description="fraction of each class's training images held out if there is no validation split"
    )
    split_seed: int = Field(
        0, ge=0, examples=[1], description="seed of the splits made here, independent of the run's seed"
    )
    shots: int | None = Field(
        None,
        ge=1,
        examples=[5],
        description="keep only this many training images per class, drawn after validation is held out",
    )


class HeldOutSplitOptions(SplitOptions):
    """Options of the splits of a source that may come without any."""

    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="fraction of each class held out for test if the data has no splits"
    )


class UnsplitDataOptions(HeldOutSplitOptions):
    """Options of a source on disk that may come without splits, and whose classes a file may list."""

    class_file: str | None = Field(
        None,
        examples=["classes.txt"],
        json_schema_extra=LOCAL_PATH,
        description="file with one class per line, in the order of the logits; default: the classes of train, sorted",
    )


class NamedSplitsOptions(UnsplitDataOptions):
    """Options of a source whose folders, columns or tables may be named after splits."""

    split_names: SplitNames


class UnlabelledRowsOptions(NamedSplitsOptions):
    """Options of a source that stores a label beside each image, which may be missing."""

    on_missing_label: Literal["stop", "skip"] = Field(
        "stop", description="images without a label: stop, or leave them out, counted"
    )


class TargetOptions(UnlabelledRowsOptions):
    """Options of a source whose images may have several labels, or numbers, instead of one class."""

    label_separator: str | None = Field(
        None,
        min_length=1,
        examples=["|"],
        description="several labels per image: the text between the labels in label_column; an image with an empty "
        "cell has none of the labels",
    )
    label_columns: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        examples=[["indoor", "cute"]],
        description="several labels per image: one column per label with 0 or 1, true or false, yes or no, instead of "
        "label_column",
    )
    target_column: str | tuple[str, ...] | None = Field(
        None,
        min_length=1,
        examples=["age"],
        description="numbers instead of labels: the column of numbers, or a list of several columns",
    )

    @model_validator(mode="after")
    def _check_single_target(self) -> TargetOptions:
        chosen = [name for name in TASK_BY_OPTION if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} cannot be combined: images have labels or numbers, of one kind")
        if self.target_column is not None and self.class_file is not None:
            raise ValueError("class_file lists classes, and target_column has numbers")
        for columns in (self.label_columns or (), self.target_columns):
            if len(set(columns)) < len(columns):
                raise ValueError(f"a column is named twice: {', '.join(columns)}")
        return self

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The columns of numbers; empty if there are none."""
        return (self.target_column,) if isinstance(self.target_column, str) else self.target_column or ()

    @property
    def target(self) -> Literal["class", "labels", "number"]:
        """What these options say of the labels."""
        if self.target_column is not None:
            return "number"
        return "class" if self.label_separator is None and self.label_columns is None else "labels"


TASK_BY_OPTION = {"label_separator": "multilabel", "label_columns": "multilabel", "target_column": "regression"}
"""The fields that choose another target than one class per image, with the task that learns it."""


def hold_out(
    names: Sequence[str], labels: Sequence[Label], fraction: float, seed: int, leave: int = 1
) -> tuple[list[int], list[int]]:
    """Return the indices that are kept and those that are held out, both in increasing order.

    Of a class of n images, `round(fraction * n)` are held out: at least one (unless `fraction` is 0), and never so many
    that fewer than `leave` remain. Nothing is held out of a class of `leave` images or fewer.
    """
    held = set(_select_per_class(names, labels, seed, lambda count: _count_held_out(count, fraction, leave), leave))
    return [i for i in range(len(names)) if i not in held], sorted(held)


def hold_out_indices(numbers: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the samples `numbers` `[n]` of a single class as `hold_out` does, using only a few bytes per sample."""
    import numpy as np

    places = (int(hash_text(f"{seed}/{number}")[:16], 16) for number in numbers)
    order = np.argsort(np.fromiter(places, np.uint64, len(numbers)))
    count = _count_held_out(len(numbers), fraction)
    return np.sort(numbers[order[count:]]), np.sort(numbers[order[:count]])


def select_shots(names: Sequence[str], labels: Sequence[Label], shots: int, seed: int) -> list[int]:
    """Return the indices of `shots` images per class (all images of a smaller class), in increasing order.

    A smaller number of shots selects a subset of a larger one, except of images with several labels.
    """
    return sorted(_select_per_class(names, labels, seed, lambda count: shots))


def compute_split_hash(names: Sequence[str], labels: Sequence[Label]) -> str:
    """Return a hash of a split's names and labels: eight hexadecimal digits, independent of the order of the images.

    A name in another form of Unicode, as some systems write it, has the same hash.
    """
    digest = sha256()
    for line in sorted(f"{normalize('NFC', name)}\t{label}\n" for name, label in zip(names, labels, strict=True)):
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:8]


def get_split_hash(split: Split) -> str | None:
    """Return the hash of a split whose samples have names, or a stream's own `digest`; None if there is neither.

    Samples without labels count as having the label 0.
    """
    names = getattr(split, "names", None)
    return (
        getattr(split, "digest", None)
        if names is None
        else compute_split_hash(names, getattr(split, "labels", [0] * len(names)))
    )


def make_train_val_splits(
    train: FileSplit, val: FileSplit | None, options: SplitOptions
) -> tuple[dict[str, FileSplit], list[str]]:
    """Return `train` and, if not empty, `val`, with notes on what was made here.

    Validation is held out of train if the source has no validation split. Shots are drawn after that.

    Raises:
        UsageError: shots are set, and the images have numbers.
    """
    notes = []
    seed = options.split_seed
    per = _describe_strata(train)
    if options.shots is not None and not per:
        raise UsageError(
            "dataset.shots keeps images per class, and these images have numbers instead of classes.",
            what_to_do="Leave dataset.shots out.",
            code="data.shots-of-numbers",
        )
    if val is None:
        kept, held = hold_out(train.names, train.labels, options.val_fraction, seed)
        train, val = train.take(kept), train.take(held)
        notes.append(format_held_out_note("validation", "train", options.val_fraction, seed, val))
    if options.shots is not None:
        before = train
        train = train.take(select_shots(train.names, train.labels, options.shots, seed))
        counts = Counter(chain.from_iterable(map(list_label_indices, before.labels)))
        few = sum(count < options.shots for count in counts.values())
        short = f" ({few} {'labels' if per == 'label' else 'classes'} have fewer)" if few else ""
        notes.append(
            f"train: {options.shots} images per {per} kept of {len(before):,} in all{short}, seed {seed}, "
            f"split {compute_split_hash(train.names, train.labels)}"
        )
    return {"train": train, **({"val": val} if len(val) else {})}, notes


def make_train_val_test_splits(
    images: FileSplit, options: HeldOutSplitOptions
) -> tuple[dict[str, FileSplit], list[str]]:
    """Split images that come without splits into train, val and test, and return notes on what was made."""
    # Keep at least two images of a class, so that train and validation get one each.
    kept, held = hold_out(images.names, images.labels, options.test_fraction, options.split_seed, leave=2)
    train, test = images.take(kept), images.take(held)
    made, notes = make_train_val_splits(train, None, options)
    if len(test):
        made["test"] = test
    return made, [format_held_out_note("test", "all images", options.test_fraction, options.split_seed, test), *notes]


def complete_splits(
    parts: dict[str, FileSplit], options: SplitOptions, where: str
) -> tuple[dict[str, FileSplit], list[str]]:
    """Return all splits of a source that has `train` and possibly others, with notes on what was made.

    A source without `train` can only be evaluated; nothing is made of it.
    """
    if "train" not in parts:
        return parts, [f"{where} has no train split, so it can only be evaluated"]
    made, notes = make_train_val_splits(parts["train"], parts.get("val"), options)
    if "test" in parts:
        made["test"] = parts["test"]
    else:
        notes.append(f"test: {where} has no test split, so none is reported")
    return made, notes


def format_held_out_note(part: str, source: str, fraction: float, seed: int, held: FileSplit) -> str:
    """Return a note on a split that was made here."""
    if not len(held):
        return f"{part}: none was held out (fraction {fraction:g}, or a single image per class)"
    per = _describe_strata(held)
    return (
        f"{part}: {100 * fraction:g}% of {source} held out{f' per {per}' * bool(per)} ({len(held):,} images), "
        f"seed {seed}, split {compute_split_hash(held.names, held.labels)}"
    )


def require_all_classes_in_train(train: FileSplit, classes: Sequence[str], where: str) -> None:
    """Check that there are two or more classes, each with a training image.

    Raises:
        ToastError: there are fewer than two classes, or some have no training image; the message names them.
    """
    if len(classes) < 2 and get_label_vector(train) is None:
        raise ToastError(
            f"{where} has a single class, '{classes[0]}'." if classes else f"{where} has no classes.",
            "Classification needs at least two classes.",
            "Add images of other classes.",
            code="data.too-few-classes",
        )
    present = set(chain.from_iterable(map(list_label_indices, train.labels)))
    missing = [name for label, name in enumerate(classes) if label not in present]
    if missing:
        raise ToastError(
            f"{where} has no training image of {format_class_names(missing)}.",
            "Every class needs at least one training image.",
            "Add images, or remove the class from all splits.",
            code="data.class-without-images",
        )


CLASS_NOUNS = {"class": ("class", "classes"), "labels": ("label", "labels"), "number": ("number", "numbers")}
"""What one name and several names of `DataSet.classes` are called, by `DataSet.target`."""


def format_class_names(names: Sequence[str], most: int = 5, target: str = "class") -> str:
    """Format class names for a message: `class 'a'`, or `classes 'a', 'b' and 7 more`."""
    shown = ", ".join(map(quote_class_name, names[:most]))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{CLASS_NOUNS[target][len(names) != 1]} {shown}{more}"


def quote_class_name(name: str) -> str:
    """Return a class name in quotes, with invisible characters written as escapes."""
    return "'" + "".join(each if each.isprintable() else repr(each)[1:-1] for each in name) + "'"


def _count_held_out(count: int, fraction: float, leave: int = 1) -> int:
    """Return how many of `count` images of a class are held out."""
    return min(max(1, int(fraction * count + 0.5)), max(0, count - leave)) if fraction > 0 else 0


def _select_per_class(
    names: Sequence[str], labels: Sequence[Label], seed: int, how_many: Callable[[int], int], leave: int = 0
) -> list[int]:
    """Return the indices of the first `how_many(class size)` images of each class in hash order.

    All images with numbers are one class. Of each label of images with several, `leave` images are not drawn.
    """
    order = sorted(range(len(names)), key=lambda index: hash_text(f"{seed}/{normalize('NFC', names[index])}"))
    indices = [list_label_indices(label) for label in labels]
    if any(len(each) > 1 for each in indices) or () in labels:
        return draw_per_label(indices, order, how_many, leave)
    classes: dict[tuple[int, ...], list[int]] = {}
    for index in order:
        classes.setdefault(indices[index], []).append(index)
    return [index for members in classes.values() for index in members[: how_many(len(members))]]


def _describe_strata(images: FileSplit) -> str:
    """Return what the images of a split are divided by: class or label; empty for numbers."""
    vector = get_label_vector(images)
    target = "class" if vector is None else vector.target
    return {"class": "class", "labels": "label", "number": ""}[target]
