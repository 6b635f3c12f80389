"""What the five fine-grained sets (FGVC) share: where each lies, whose lists split it, and whether it is all there.

A set's own annotations say what is in it. In common use beside them are three JSON files, `train.json`, `val.json` and
`test.json`, each of file name to class id: the same test images, and a validation split that others have held out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet
from toast_cli.data.images.file_split import FileSplit
from toast_cli.data.images.files import read_text_file, require_files
from toast_cli.data.images.object_masks import BoxFile, MaskFile
from toast_cli.data.paths import get_data_dir
from toast_cli.data.splits import SplitOptions, format_class_names, make_train_val_splits, require_all_classes_in_train
from toast_cli.utils.errors import ToastError

FGVC_SPLITS = ("train", "val", "test")


class FgvcOptions(SplitOptions):
    """Whose lists split a set, and how what they leave open is divided."""

    lists: Literal["official", "json"] | None = Field(
        None,
        description="official: the set's own lists; json: train.json, val.json and test.json, file name to class id; "
        "left out: the official ones where they are there",
    )


@dataclass(frozen=True)
class PublishedDataset:
    """A set as it was published.

    `folders` are what its folder may be called (the first by default), `marker` the file in it that shows its own
    annotations to be there, `archives` what is to be unpacked. `images` is the folder below which the names of images
    stand, `inner` where a JSON file may leave a folder out of them. `sizes` are the images of `official` and of `json`
    lists, by split; `classes` how many there are.
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
        """What a user has to put where, in a line."""
        return f"{self.archives} unpacked in the data folder ({self.folders[0]}/{self.marker})"


@dataclass(frozen=True)
class AnnotatedDataset:
    """What a set's own annotations say: its classes, and its images by split (`train`, `test`, perhaps `val`)."""

    classes: tuple[str, ...]
    splits: Mapping[str, FileSplit]
    notes: tuple[str, ...] = ()


def open_published_dataset(
    published: PublishedDataset, options: Any, data_dir: Path | None, read: Callable[[Path, Any], AnnotatedDataset]
) -> DataSet:
    """Read annotations, by `read(root, options)`, and lists; no image is opened.

    Raises:
        ToastError: the set is not there or not whole, or its annotations are not as published.
    """
    root = _find_root(published, get_data_dir(data_dir))
    own, notes = _read_annotations(root, published, options, read)
    chosen = options.lists or ("json" if own is None else "official")
    if chosen == "json":
        own, more = _split_by_json_lists(root, published, own)
        notes = (*notes, *more)
    elif own is None:
        raise ToastError(
            f"The annotations of {published.title} are not there.",
            f"{root / published.marker} does not exist.",
            f"Unpack {published.archives} in {root.parent}, or use dataset.lists=json.",
            code="data.missing-annotations",
        )
    elif (root / "train.json").is_file():
        notes = ("the set's own lists are used; dataset.lists=json takes the JSON files beside them",)
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
    """The set's own annotations, None where they are not there; JSON files that are asked for do without damaged ones.

    Raises:
        ToastError: they are there, and are not as published.
    """
    if not (root / published.marker).is_file():
        return None, ()
    try:
        return read(root, options), ()
    except ToastError as error:
        if options.lists == "json":
            return None, (f"the set's own annotations are not used: {error.what}",)
        if options.lists is None and (root / "train.json").is_file():
            hint = f"{error.what_to_do} Or use dataset.lists=json, which does without."
            raise ToastError(error.what, error.why, hint, code=error.code) from error
        raise


def group_by_split(everything: FileSplit, parts: list[str]) -> dict[str, FileSplit]:
    """The images of each split, when `parts` says of every image which it is in."""
    return {
        part: everything.take([index for index, said in enumerate(parts) if said == part])
        for part in FGVC_SPLITS
        if part in parts
    }


def _find_root(published: PublishedDataset, home: Path) -> Path:
    places = [*(home / folder for folder in published.folders), home]
    for name in (published.marker, "train.json"):
        for place in places:
            if (place / name).is_file():
                return place
    wanted = home / published.folders[0] / published.marker
    raise ToastError(
        f"{published.title} was not found.",
        f"Neither {wanted} nor {home / published.marker} exists.",
        f"Download {published.archives} from {published.home} and unpack, so that {wanted} exists; "
        f"or name the folder that holds {published.folders[0]} with --data-dir.",
        code="data.missing-dataset",
    )


def _split_by_json_lists(
    root: Path, published: PublishedDataset, own: AnnotatedDataset | None
) -> tuple[AnnotatedDataset, tuple[str, ...]]:
    """The set as the JSON files split it; class names and masks are those of its own annotations, where it has them."""
    lists = _read_json_lists(root)
    known = (
        {} if own is None else {name: what for split in own.splits.values() for name, what in _iterate_labels(split)}
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
        notes.append("classes are called by the numbers of the JSON files: their names are not there, or differ")
    if any(split.regions is None for split in splits.values()):
        notes.append("masks are missing: the set's own annotations do not have them for all of these images")
    return AnnotatedDataset(classes, splits), tuple(notes)


def _iterate_labels(split: FileSplit) -> Iterator[tuple[str, tuple[int, Any]]]:
    """Label and region (None where there are none) of every image."""
    regions = split.regions or (None,) * len(split)
    return zip(split.names, zip(split.labels, regions, strict=True), strict=True)


def _match_class_names(
    splits: Mapping[str, FileSplit], known: Mapping[str, tuple[int, Any]], own: AnnotatedDataset | None
) -> tuple[str, ...] | None:
    """The set's own names, if its annotations and the JSON files agree on which images share a class."""
    named: dict[int, int] = {}
    for split in splits.values():
        for name, label in zip(split.names, split.labels, strict=True):
            if name not in known or named.setdefault(label, known[name][0]) != known[name][0]:
                return None
    if own is None or len(set(named.values())) < len(named):
        return None
    return tuple(own.classes[named[label]] for label in range(len(named)))


def _read_json_lists(root: Path) -> dict[str, dict[str, int]]:
    """File names and class ids by split.

    Raises:
        ToastError: there is no train.json, an image is in two lists, or a class is not among those of train.
    """
    lists = {part: _read_json_list(root / f"{part}.json") for part in FGVC_SPLITS if (root / f"{part}.json").is_file()}
    if "train" not in lists:
        raise ToastError(
            f"There is no train.json in {root}.",
            what_to_do="Put it there, or use dataset.lists=official.",
            code="data.missing-list",
        )
    seen: dict[str, str] = {}
    for part, labels in lists.items():
        for name in labels:
            if seen.setdefault(name, part) != part:
                raise ToastError(
                    f"{root}: {name} is in both {seen[name]}.json and {part}.json.",
                    "A model must not be judged by what it was trained on.",
                    "Mend the lists.",
                    code="data.overlapping-splits",
                )
        unknown = sorted(set(labels.values()) - set(lists["train"].values()))
        if unknown:
            raise ToastError(
                f"{root}: {part}.json has {format_class_names([str(identifier) for identifier in unknown])}, "
                "which train.json does not have.",
                what_to_do="Mend the lists.",
                code="data.unknown-class",
            )
    return lists


def _read_json_list(file: Path) -> dict[str, int]:
    """File names and class ids."""
    try:
        found = json.loads(read_text_file(file))
    except (OSError, ValueError) as error:
        raise ToastError(
            f"{file} cannot be read.", str(error), "Fetch it anew.", code="data.unreadable-file"
        ) from error
    if not isinstance(found, dict) or not found:
        raise ToastError(
            f"{file} is not a JSON object of file name to class id.",
            what_to_do="Fetch it anew.",
            code="data.invalid-list",
        )
    for name, identifier in found.items():
        if isinstance(identifier, bool) or not isinstance(identifier, int):
            raise ToastError(
                f"{file}: {name} has the class {identifier!r}, no whole number.",
                what_to_do="Mend it.",
                code="data.invalid-list",
            )
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ToastError(
                f"{file}: {name} leads out of the data set's folder.",
                what_to_do="Mend it.",
                code="data.unsafe-path",
            )
    return found


def _require_files(own: AnnotatedDataset, published: PublishedDataset) -> None:
    images = [split.root / name for split in own.splits.values() for name in split.names]
    drawn = [region for split in own.splits.values() for region in split.regions or ()]
    besides = [region.file for region in drawn if isinstance(region, BoxFile | MaskFile)]
    files = [(str(file), file) for file in (*images, *besides)]
    what = f"{'images and annotations' if besides else 'images'} of {published.title}"
    require_files(files, what, f"Unpack {published.archives} anew.")


def _describe_size_difference(own: AnnotatedDataset, published: PublishedDataset, lists: str) -> list[str]:
    """A sentence if the copy is not of the published size."""
    sizes = published.sizes[lists]
    here = {part: len(own.splits.get(part, ())) for part in sizes}
    if here == dict(sizes) and len(own.classes) == published.classes:
        return []
    words = {"train": "training", "val": "validation", "test": "test"}
    had = " and ".join(f"{here[part]:,} {words[part]}" for part in sizes)
    wanted = " and ".join(f"{size:,}" for size in sizes.values())
    return [
        f"This copy holds {had} images of {len(own.classes)} classes; "
        f"the published {published.title} has {wanted} of {published.classes}."
    ]
