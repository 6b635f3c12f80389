"""What a run remembers of its data: its classes and, for each split, its samples, so that differences can be named.

No image is decoded. A sample is its name, its label and its stamp: a hash of its text, or of the size and of three
blocks of its files (their beginning, middle and end; all of a small file), or the checksum that a zip has of it. A file
that was replaced is noticed; of a change in place, one between the blocks is not. Times are not compared: copying a
folder changes them. Splits of more than `MAX_LISTED_SAMPLES` samples are known by a hash of names and labels alone:
opening a million files on a network would take longer than an epoch. A stream is known by the names and stamps of its
files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from toast_cli.data.splits import get_split_hash

if TYPE_CHECKING:
    from toast_cli.data.base import DataSet, Label, Split

MAX_LISTED_SAMPLES = 50_000
"""A longer split is not listed: the record stays below a few megabytes."""
UNKNOWN = -1
"""Number of samples of a split that is known by its hash alone."""
MAX_NAMED = 3
"""Number of samples that a difference names."""

SampleRecord = tuple[str, int | tuple[int, ...] | tuple[float, ...], int | None]
"""Name, label and stamp of a sample."""


@dataclass(frozen=True)
class SplitIdentity:
    """The samples of a split.

    Attributes:
        samples: their number, or `UNKNOWN`.
        hash: the hash of names and labels in any order; None if samples have no names.
        order: the hash of names, labels and stamps in their order, or of a stream's files; None if unknown, as in runs
            of earlier versions.
        listed: the samples; None for a longer split or a stream.
    """

    samples: int
    hash: str | None = None
    order: str | None = None
    listed: tuple[SampleRecord, ...] | None = None


@dataclass(frozen=True)
class DataIdentity:
    """The classes in the order of the labels, and the splits by name. `classes` is None if unknown."""

    classes: tuple[str, ...] | None = None
    splits: dict[str, SplitIdentity] = field(default_factory=dict)

    def summary(self) -> Any:
        """Return a plain value that is equal for equal data, without the list of samples."""
        return [self.classes, {name: [s.samples, s.hash, s.order] for name, s in sorted(self.splits.items())}]

    def dump(self) -> dict[str, Any]:
        """Return the identity as plain values."""
        return asdict(self)


def identify_data(data: DataSet) -> DataIdentity:
    """Return the identity of a data set."""
    return DataIdentity(data.classes, {name: identify_split(split) for name, split in data.splits.items()})


def identify_split(split: Split) -> SplitIdentity:
    """Return the identity of a split."""
    count, names = len(split), getattr(split, "names", None)
    if names is None:
        return SplitIdentity(count, get_split_hash(split), getattr(split, "content", None))
    labels: Sequence[Label] = getattr(split, "labels", [0] * count)
    listed = None
    if count <= MAX_LISTED_SAMPLES:
        stamp = getattr(split, "stamp", lambda index: None)
        listed = tuple((name, labels[index], stamp(index)) for index, name in enumerate(names))
    samples: Iterable[tuple[Any, ...]] = listed or zip(names, labels, strict=True)
    return SplitIdentity(count, get_split_hash(split), _hash_in_order(samples, getattr(split, "digest", "")), listed)


def _hash_in_order(samples: Iterable[tuple[Any, ...]], start: str) -> str:
    digest = sha256(start.encode())
    for sample in samples:
        digest.update(("\t".join(map(str, sample)) + "\n").encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def describe_data_differences(recorded: DataIdentity, current: DataIdentity) -> list[str]:
    """Return a sentence on each difference between the recorded data and the current data; empty if there is none."""
    lines = describe_class_differences(recorded.classes, current.classes)
    for name in dict.fromkeys((*recorded.splits, *current.splits)):
        lines += describe_split_differences(name, recorded, current)
    return lines


def describe_class_differences(recorded: tuple[str, ...] | None, current: tuple[str, ...] | None) -> list[str]:
    """Return a sentence on the difference between two lists of classes; empty if they are equal or unknown."""
    if recorded is None or current is None or recorded == current:
        return []
    missing, extra = sorted(set(recorded) - set(current)), sorted(set(current) - set(recorded))
    found = [
        f"{where}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for where, names in (("not in the data", missing), ("only in the data", extra))
        if names
    ]
    if found:
        return [f"Classes {'; '.join(found)}."]
    first = next(index for index, name in enumerate(recorded) if name != current[index])
    return [
        f"They are the same names in another order: class {first} was '{recorded[first]}' and is '{current[first]}'."
    ]


def describe_split_differences(name: str, recorded: DataIdentity, current: DataIdentity) -> list[str]:
    """Return a sentence on the difference between a recorded split and the current one; empty if there is none."""
    before, now = recorded.splits.get(name), current.splits.get(name)
    if before is None or now is None:
        if before is now or not recorded.splits:
            return []
        count = (before or now or SplitIdentity(0)).samples
        return [f"{name}: {'the split is new' if before is None else 'the split is gone'} ({count:,} samples)."]
    same_samples = before.samples in (now.samples, UNKNOWN) and before.hash in (now.hash, None)
    if same_samples and before.order in (now.order, None):
        return []
    if before.listed is not None and now.listed is not None:
        return [f"{name}: {_describe_listed(name, recorded, current)}."]
    if before.samples not in (now.samples, UNKNOWN):
        return [f"{name}: {before.samples:,} samples before, {now.samples:,} now."]
    if before.hash not in (now.hash, None):
        return [f"{name}: {now.samples:,} samples, with other names or labels than before."]
    what = "in another order or with other content"
    return [f"{name}: {max(now.samples, before.samples):,} samples, {what} than before."]


def _describe_listed(name: str, recorded: DataIdentity, current: DataIdentity) -> str:
    before, now = _group_by_name(recorded, name), _group_by_name(current, name)
    added, removed = [each for each in now if each not in before], [each for each in before if each not in now]
    both = [each for each in now if each in before and now[each] != before[each]]
    relabelled = {each for each in both if [label for label, _ in now[each]] != [label for label, _ in before[each]]}
    parts = [
        *_describe_added(name, added, recorded),
        *_count_named("removed", removed),
        *_count_named("with another label", [each for each in both if each in relabelled]),
        *_count_named("with other content", [each for each in both if each not in relabelled]),
    ]
    return ", ".join(parts) or "the same samples in another order or composition"


def _describe_added(name: str, added: Sequence[str], recorded: DataIdentity) -> list[str]:
    """Describe added samples, those that were in another split apart."""
    parts = []
    for other, split in recorded.splits.items():
        if other != name and split.listed is not None:
            there = {sample for sample, _, _ in split.listed}
            parts += _count_named(f"that were in {other}", [each for each in added if each in there])
            added = [each for each in added if each not in there]
    return [*_count_named("added", added), *parts]


def _count_named(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = ", ..." if len(names) > MAX_NAMED else ""
    return [f"{len(names):,} {what} ({', '.join(names[:MAX_NAMED])}{more})"]


def _group_by_name(data: DataIdentity, split: str) -> Mapping[str, list[tuple[str, int | None]]]:
    """Return class and stamp of the samples of each name; names of files in different folders may be equal."""
    found: dict[str, list[tuple[str, int | None]]] = defaultdict(list)
    for name, label, stamp in sorted(data.splits[split].listed or (), key=repr):
        found[name].append((format_label_names(label, data.classes or ()), stamp))
    return found


def format_label_names(label: Label, classes: Sequence[str]) -> str:
    """Return the class or the labels by name, numbers as they are."""
    each_of = (label,) if isinstance(label, int) else label
    shown = [classes[each] if isinstance(each, int) and 0 <= each < len(classes) else f"{each}" for each in each_of]
    return ", ".join(shown) or "nothing"
