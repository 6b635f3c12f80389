"""Splits that we have to make ourselves: held out per class, from a fixed seed, the same on every machine.

Each class is put in one random order, by a hash of the seed and the image's name. Parts are cut from the front of
it, so neither the order in which a file system lists files nor the version of Python has a say.
"""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pydantic import Field

from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from toast_cli.data.base import Split
    from toast_cli.data.images.file_split import FileSplit


class SplitOptions(NamedOptions):
    """What a source on disk can be told about the splits it has to make itself."""

    val_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of each class's training images held out where there is no validation split"
    )
    split_seed: int = Field(0, ge=0, description="seed of every split that is made, apart from the run's own seed")
    shots: int | None = Field(
        None, ge=1, description="keep this many training images per class, drawn after validation was held out"
    )


class UnsplitDataOptions(SplitOptions):
    """The same for a source that may not be split at all."""

    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="share of each class held out for test where the data is not split at all"
    )
    class_file: str | None = Field(
        None,
        description="file with a class on each line, in the order of the logits; left out: those of train, sorted",
    )


SPLIT_ALIASES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What a split is called here, by the lower case of what folders, tables and hubs call it."""


def hold_out(
    names: Sequence[str], labels: Sequence[int], fraction: float, seed: int, leave: int = 1
) -> tuple[list[int], list[int]]:
    """Indices that stay and indices that are held out, each in their old order.

    Of a class of n images, `fraction * n` rounded are held out: at least one (unless `fraction` is 0) and never so
    many that fewer than `leave` stay. A class of `leave` images or fewer stays whole.
    """

    held = set(_select_per_class(names, labels, seed, lambda count: _count_held_out(count, fraction, leave)))
    return [i for i in range(len(names)) if i not in held], sorted(held)


def hold_out_indices(numbers: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for samples of one class whose names are their numbers `[n]`, in a few bytes of memory each."""
    import numpy as np

    places = (int.from_bytes(_sha256(f"{seed}/{number}").digest()[:8], "big") for number in numbers)
    order = np.argsort(np.fromiter(places, np.uint64, len(numbers)))
    count = _count_held_out(len(numbers), fraction)
    return np.sort(numbers[order[count:]]), np.sort(numbers[order[:count]])


def select_shots(names: Sequence[str], labels: Sequence[int], shots: int, seed: int) -> list[int]:
    """Indices of `shots` images per class (of all, in a class that has fewer), in their old order.

    Fewer shots are always a subset of more.
    """
    return sorted(_select_per_class(names, labels, seed, lambda count: shots))


def compute_split_hash(names: Sequence[str], labels: Sequence[int]) -> str:
    """Eight hexadecimal digits that two runs share exactly when they hold the same images under the same labels."""
    lines = sorted(f"{name}\t{label}\n" for name, label in zip(names, labels, strict=True))
    return _sha256("".join(lines)).hexdigest()[:8]


def get_split_hash(split: Split) -> str | None:
    """The `split_hash` of any split whose samples have names, or a stream's own; texts count as unlabelled."""
    names = getattr(split, "names", None)
    return (
        getattr(split, "digest", None)
        if names is None
        else compute_split_hash(names, getattr(split, "labels", [0] * len(names)))
    )


def make_train_val_splits(
    train: FileSplit, val: FileSplit | None, options: SplitOptions
) -> tuple[dict[str, FileSplit], list[str]]:
    """`train` and, if there is one, `val`, and the notes that say what was made here.

    Where the source has no validation split it is held out of train; only then are shots drawn.
    """
    notes = []
    seed = options.split_seed
    if val is None:
        kept, held = hold_out(train.names, train.labels, options.val_fraction, seed)
        train, val = train.take(kept), train.take(held)
        notes.append(format_held_out_note("validation", "train", options.val_fraction, seed, val))
    if options.shots is not None:
        before = train
        train = train.take(select_shots(train.names, train.labels, options.shots, seed))
        few = sum(count < options.shots for count in Counter(before.labels).values())
        short = f" ({few} classes have fewer)" if few else ""
        notes.append(
            f"train: {options.shots} images per class kept of {len(before):,} in all{short}, seed {seed}, "
            f"split {compute_split_hash(train.names, train.labels)}"
        )
    return {"train": train, **({"val": val} if len(val) else {})}, notes


def make_train_val_test_splits(
    images: FileSplit, options: UnsplitDataOptions
) -> tuple[dict[str, FileSplit], list[str]]:
    """The splits of images that nobody has divided: test and validation are both made here; and the notes about it."""
    # A class of three or more images keeps two here, so that validation and train get one each.
    kept, held = hold_out(images.names, images.labels, options.test_fraction, options.split_seed, leave=2)
    train, test = images.take(kept), images.take(held)
    made, notes = make_train_val_splits(train, None, options)
    if len(test):
        made["test"] = test
    return made, [format_held_out_note("test", "all images", options.test_fraction, options.split_seed, test), *notes]


def complete_splits(
    parts: dict[str, FileSplit], options: SplitOptions, where: str
) -> tuple[dict[str, FileSplit], list[str]]:
    """The splits of images of which `train` and perhaps others are given, and the notes about what was made."""
    made, notes = make_train_val_splits(parts["train"], parts.get("val"), options)
    if "test" in parts:
        made["test"] = parts["test"]
    else:
        notes.append(f"test: {where} has no test split, so none is reported")
    return made, notes


def format_held_out_note(part: str, source: str, fraction: float, seed: int, held: FileSplit) -> str:
    """The sentence about a split that was made here."""
    if not len(held):
        return f"{part}: none was held out (fraction {fraction:g}, or a single image per class)"
    return (
        f"{part}: {100 * fraction:g}% of {source} held out per class ({len(held):,} images), seed {seed}, "
        f"split {compute_split_hash(held.names, held.labels)}"
    )


def require_all_classes_in_train(train: FileSplit, classes: Sequence[str], where: str) -> None:
    """Check that each class can be learned.

    Raises:
        ToastError: there is one class only, or some have no training image; they are named.
    """
    if len(classes) < 2:
        raise ToastError(
            f"{where} holds a single class, '{classes[0]}'." if classes else f"{where} holds no class.",
            "There is nothing to tell apart.",
            "Give images of two classes or more.",
            code="data.too-few-classes",
        )
    seen = set(train.labels)
    missing = [name for label, name in enumerate(classes) if label not in seen]
    if missing:
        raise ToastError(
            f"No training image of {format_class_names(missing)} in {where}.",
            "Every class needs at least one.",
            "Add images, or remove the class everywhere.",
            code="data.class-without-images",
        )


def format_class_names(names: Sequence[str], most: int = 5) -> str:
    """`class 'a'`, or `classes 'a', 'b' and 7 more`, for a message."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{'class' if len(names) == 1 else 'classes'} {shown}{more}"


def _count_held_out(count: int, fraction: float, leave: int = 1) -> int:
    """How many of a class of so many are held out."""
    return min(max(1, int(fraction * count + 0.5)), max(0, count - leave)) if fraction > 0 else 0


def _select_per_class(
    names: Sequence[str], labels: Sequence[int], seed: int, how_many: Callable[[int], int]
) -> list[int]:
    """The first `how_many(size of the class)` of each class's random order."""
    classes: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        classes.setdefault(label, []).append(index)
    drawn = []
    for members in classes.values():
        members.sort(key=lambda index: _sha256(f"{seed}/{names[index]}").digest())
        drawn += members[: how_many(len(members))]
    return drawn


def _sha256(text: str) -> Any:
    # surrogateescape: Linux file names may hold bytes that are no UTF-8
    return sha256(text.encode(errors="surrogateescape"))
