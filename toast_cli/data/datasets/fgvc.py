"""Shared code of the five fine-grained (FGVC) data sets: finding the folder, choosing the lists, checking the files.

Every data set has official annotations. Many papers instead use three JSON files, `train.json`, `val.json` and
`test.json`, which map file names to class ids. They have the official test images and a published validation split.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from pydantic import Field

from toast_cli.data.base import DataSet
from toast_cli.data.images.files import read_text_file
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.images.listed_files import require_files
from toast_cli.data.images.object_masks import BoxFile, MaskFile
from toast_cli.data.paths import get_data_dir
from toast_cli.data.splits import SplitOptions, format_class_names, make_train_val_splits, require_all_classes_in_train
from toast_cli.utils.errors import ToastError

FGVC_SPLITS = ("train", "val", "test")


class FgvcOptions(SplitOptions):
    """Options of an FGVC data set: which lists define the splits, and how validation images are held out."""

    lists: Literal["official", "json"] | None = Field(
        None,
        description="official: the official lists; json: train.json, val.json and test.json, which map file names to "
        "class ids; default: official if they exist, else json",
    )


@dataclass(frozen=True)
class PublishedDataset:
    """Facts about a data set as it was published.

    Args:
        title: Name of the data set in messages.
        folders: Accepted names of its folder. The first is the default.
        marker: A file that exists if the official annotations do, relative to the folder.
        archives: The archives to unpack, for messages.
        home: URL of the data set.
        sizes: Number of images per split, for the `official` and the `json` lists.
        classes: Number of classes.
        images: The folder that image names are relative to.
        inner: A folder that the image names in the JSON files may omit.
    """

    title: str
    folders: tuple[str, ...]
    marker: str
    archives: str
    home: str
    sizes: Mapping[str, Mapping[str, int]]
    classes: int
    images: str = ""
    inner: str = ""

    @property
    def needs(self) -> str:
        """One line that says which archives to unpack, and where."""
        return f"{self.archives} unpacked in the data folder ({self.folders[0]}/{self.marker})"


@dataclass(frozen=True)
class AnnotatedDataset:
    """The annotations of a data set: its classes, and its images by split (`train`, `test`, optionally `val`)."""

    classes: tuple[str, ...]
    splits: Mapping[str, FileSplit]
    notes: tuple[str, ...] = ()


def open_published_dataset(
    published: PublishedDataset, options: Any, data_dir: Path | None, read: Callable[[Path, Any], AnnotatedDataset]
) -> DataSet:
    """Read annotations and lists, without opening any image.

    Args:
        published: The data set.
        options: The options of the data set.
        data_dir: The data folder; None for the default.
        read: Reads the official annotations, given the folder and the options.

    Raises:
        ToastError: If the data set is missing or incomplete, or its annotations are invalid.
    """
    root = _find_root(published, get_data_dir(data_dir))
    own, notes = _read_annotations(root, published, options, read)
    chosen = options.lists or ("json" if own is None else "official")
    if chosen == "json":
        own, more = _split_by_json_lists(root, published, own)
        notes = (*notes, *more)
    elif own is None:
        raise ToastError(
            f"The official annotations of {published.title} are missing.",
            f"{root / published.marker} does not exist.",
            f"Unpack {published.archives} in {root.parent}, or use dataset.lists=json.",
            code="data.missing-annotations",
        )
    elif (root / "train.json").is_file():
        notes = ("using the official lists; dataset.lists=json selects the JSON files in the same folder",)
    _require_files(own, published)
    require_all_classes_in_train(own.splits["train"], own.classes, str(root))
    made, divided = make_train_val_splits(own.splits["train"], own.splits.get("val"), options)
    if len(own.splits.get("test", ())):
        made["test"] = own.splits["test"]
    return DataSet(
        own.classes, made, (*_describe_size_difference(own, published, chosen), *own.notes, *notes, *divided)
    )


def _read_annotations(
    root: Path, published: PublishedDataset, options: Any, read: Callable[[Path, Any], AnnotatedDataset]
) -> tuple[AnnotatedDataset | None, tuple[str, ...]]:
    """Return the official annotations (None if they do not exist) and notes.

    With `lists=json`, damaged annotations are ignored and a note says so.

    Raises:
        ToastError: If the annotations exist but are invalid.
    """
    if not (root / published.marker).is_file():
        return None, ()
    try:
        return read(root, options), ()
    except ToastError as error:
        if options.lists == "json":
            return None, (f"the official annotations are not used: {error.what}",)
        if options.lists is None and (root / "train.json").is_file():
            hint = f"{error.what_to_do} Or use dataset.lists=json, which does not need this file."
            raise ToastError(error.what, error.why, hint, code=error.code) from error
        raise


def group_by_split(everything: FileSplit, parts: list[str]) -> dict[str, FileSplit]:
    """Return the images of each split. `parts` contains the split of every image."""
    return {
        part: everything.take([index for index, other in enumerate(parts) if other == part])
        for part in FGVC_SPLITS
        if part in parts
    }


def _find_root(published: PublishedDataset, home: Path) -> Path:
    places = [*(home / folder for folder in published.folders), home]
    for name in (published.marker, "train.json"):
        for place in places:
            if (place / name).is_file():
                return place
    expected = home / published.folders[0] / published.marker
    raise ToastError(
        f"{published.title} was not found.",
        f"Neither {expected} nor {home / published.marker} exists.",
        f"Download {published.archives} from {published.home} and unpack them to create {expected}, "
        f"or pass the folder that contains {published.folders[0]} as --data-dir.",
        code="data.missing-dataset",
    )


def _split_by_json_lists(
    root: Path, published: PublishedDataset, own: AnnotatedDataset | None
) -> tuple[AnnotatedDataset, tuple[str, ...]]:
    """Split the data set by the JSON files, with class names and masks from the official annotations if available."""
    lists = _read_json_lists(root)
    known = (
        {} if own is None else {name: pair for split in own.splits.values() for name, pair in _iterate_labels(split)}
    )
    base = root / published.images if own is None else own.splits["train"].root
    left_out = published.inner and not (root / published.images / next(iter(lists["train"]))).is_file()
    ids = sorted(set(lists["train"].values()))
    label_of = {identifier: label for label, identifier in enumerate(ids)}
    splits = {}
    for part, labels in lists.items():
        names = tuple((published.inner if left_out else "") + name for name in labels)
        regions = [known[name][1] for name in names if name in known and known[name][1] is not None]
        splits[part] = FileSplit(
            base,
            names,
            tuple(label_of[identifier] for identifier in labels.values()),
            tuple(regions) if len(regions) == len(names) else None,
        )
    notes = [f"splits of {', '.join(f'{part}.json' for part in lists)}"]
    classes = _match_class_names(splits, known, own)
    if classes is None:
        classes = tuple(map(str, ids))
        notes.append(
            "classes are named by the numbers in the JSON files, because the official names are missing or do not match"
        )
    if any(split.regions is None for split in splits.values()):
        notes.append("no masks: the official annotations do not have one for every image")
    return AnnotatedDataset(classes, splits), tuple(notes)


def _get_classes(split: FileSplit) -> tuple[int, ...]:
    """Return the class of every image: published data sets have one for each."""
    return cast("tuple[int, ...]", split.labels)


def _iterate_labels(split: FileSplit) -> Iterator[tuple[str, tuple[int, Any]]]:
    """Yield the name of every image with its label and region (None if it has no region)."""
    regions = split.regions or (None,) * len(split)
    return zip(split.names, zip(_get_classes(split), regions, strict=True), strict=True)


def _match_class_names(
    splits: Mapping[str, FileSplit], known: Mapping[str, tuple[int, Any]], own: AnnotatedDataset | None
) -> tuple[str, ...] | None:
    """Return the official class names, or None if official annotations and JSON files group the images differently."""
    named: dict[int, int] = {}
    for split in splits.values():
        for name, label in zip(split.names, _get_classes(split), strict=True):
            if name not in known or named.setdefault(label, known[name][0]) != known[name][0]:
                return None
    if own is None or len(set(named.values())) < len(named):
        return None
    return tuple(own.classes[named[label]] for label in range(len(named)))


def _read_json_lists(root: Path) -> dict[str, dict[str, int]]:
    """Return a mapping from file names to class ids for every split.

    Raises:
        ToastError: If train.json is missing, an image is in two lists, or train.json lacks a class of another list.
    """
    lists = {part: _read_json_list(root / f"{part}.json") for part in FGVC_SPLITS if (root / f"{part}.json").is_file()}
    if "train" not in lists:
        raise ToastError(
            f"{root} contains no train.json.",
            what_to_do="Put it there, or use dataset.lists=official.",
            code="data.missing-list",
        )
    part_of: dict[str, str] = {}
    for part, labels in lists.items():
        for name in labels:
            if part_of.setdefault(name, part) != part:
                raise ToastError(
                    f"{root}: {name} is in both {part_of[name]}.json and {part}.json.",
                    "A model must not be evaluated on images that it was trained on.",
                    "Correct the lists.",
                    code="data.overlapping-splits",
                )
        unknown = sorted(set(labels.values()) - set(lists["train"].values()))
        if unknown:
            raise ToastError(
                f"{root}: {part}.json has {format_class_names([str(identifier) for identifier in unknown])}, "
                "which is not in train.json.",
                what_to_do="Correct the lists.",
                code="data.unknown-class",
            )
    return lists


def _read_json_list(file: Path) -> dict[str, int]:
    """Return the mapping from file names to class ids in a JSON file."""
    try:
        labels = json.loads(read_text_file(file))
    except (OSError, ValueError) as error:
        raise ToastError(
            f"Cannot read {file}.", str(error), "Download it again.", code="data.unreadable-file"
        ) from error
    if not isinstance(labels, dict) or not labels:
        raise ToastError(
            f"{file} is not a JSON object that maps file names to class ids.",
            what_to_do="Download it again.",
            code="data.invalid-list",
        )
    for name, identifier in labels.items():
        if isinstance(identifier, bool) or not isinstance(identifier, int):
            raise ToastError(
                f"{file}: the class id of {name} must be an integer, got {identifier!r}.",
                what_to_do="Correct the file.",
                code="data.invalid-list",
            )
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ToastError(
                f"{file}: the path {name} is outside the folder of the data set.",
                what_to_do="Correct the file.",
                code="data.unsafe-path",
            )
    return labels


def _require_files(own: AnnotatedDataset, published: PublishedDataset) -> None:
    images = [split.root / name for split in own.splits.values() for name in split.names]
    drawn = [region for split in own.splits.values() for region in split.regions or ()]
    extra = [region.file for region in drawn if isinstance(region, BoxFile | MaskFile)]
    files = [(str(file), file) for file in (*images, *extra)]
    what = f"{'images and annotations' if extra else 'images'} of {published.title}"
    require_files(files, what, f"Unpack {published.archives} again.")


def _describe_size_difference(own: AnnotatedDataset, published: PublishedDataset, lists: str) -> list[str]:
    """Return a note if the copy does not have the published size, else an empty list."""
    sizes = published.sizes[lists]
    here = {part: len(own.splits.get(part, ())) for part in sizes}
    if here == dict(sizes) and len(own.classes) == published.classes:
        return []
    words = {"train": "training", "val": "validation", "test": "test"}
    counted = " and ".join(f"{here[part]:,} {words[part]}" for part in sizes)
    expected = " and ".join(f"{size:,}" for size in sizes.values())
    return [
        f"This copy has {counted} images of {len(own.classes)} classes; "
        f"the published {published.title} has {expected} of {published.classes}."
    ]
