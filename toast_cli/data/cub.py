"""CUB-200-2011: 200 bird species with a bounding box per image, in the official layout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pydantic import Field

from toast_cli.data.files import Box, FileSplit
from toast_cli.data.location import data_folder
from toast_cli.data.source import DataSet, Source
from toast_cli.data.split import SplitOptions, divide, require_every_class
from toast_cli.errors import ToastError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FOLDER = "CUB_200_2011"
OFFICIAL = (5_994, 5_794, 200)
"""Training images, test images and classes of the published data set."""


class Options(SplitOptions):
    """How CUB's training images are divided; its test split is the official one."""

    name: Literal["cub"] = Field("cub", description="the data set")


def open_cub(options: Options, data_dir: Path | None) -> DataSet:
    """Read the annotation files; no image is opened. A sample's mask is its bounding box.

    Raises:
        ToastError: the data is not there, or an annotation file is missing or has an odd line.
    """
    root = _find(data_folder(data_dir))
    images = _read(root / "images.txt", "a path", str)
    class_names = _read(root / "classes.txt", "a class name", str)
    class_ids = sorted(class_names)
    label_of = {class_id: label for label, class_id in enumerate(class_ids)}

    def label(text: str) -> int:
        if not text.isdecimal() or int(text) not in label_of:
            raise ValueError(f"class {text} is not in classes.txt")
        return label_of[int(text)]

    labels = _of_each_image(root / "image_class_labels.txt", "a class id", label, images)
    in_train = _of_each_image(root / "train_test_split.txt", "1 for train or 0 for test", _flag, images)
    boxes = _of_each_image(root / "bounding_boxes.txt", "x, y, width and height", _box, images)
    _require_files(root, images)

    ids = sorted(images)
    everything = FileSplit(
        root / "images",
        tuple(images[i].value for i in ids),
        tuple(labels[i].value for i in ids),
        tuple(boxes[i].value for i in ids),
    )
    train = everything.take([place for place, i in enumerate(ids) if in_train[i].value])
    test = everything.take([place for place, i in enumerate(ids) if not in_train[i].value])
    classes = tuple(class_names[i].value for i in class_ids)
    require_every_class(train, classes, str(root))

    notes = []
    if (len(train), len(test), len(classes)) != OFFICIAL:
        notes.append(
            f"This copy holds {len(train):,} training and {len(test):,} test images of {len(classes)} classes; "
            f"the published CUB-200-2011 has {OFFICIAL[0]:,} and {OFFICIAL[1]:,} of {OFFICIAL[2]}."
        )
    splits, made = divide(train, None, options)
    if len(test):
        splits["test"] = test
    return DataSet(classes, splits, (*notes, *made))


SOURCE = Source(
    Options,
    open_cub,
    f"CUB_200_2011.tgz unpacked in the data folder ({FOLDER}/images.txt)",
    home="https://www.vision.caltech.edu/datasets/cub_200_2011",
)


@dataclass(frozen=True)
class Entry:
    """What an annotation file says about one id, and on which line."""

    line: int
    value: Any


def _find(home: Path) -> Path:
    for place in (home / FOLDER, home):
        if (place / "images.txt").is_file():
            return place
    raise ToastError(
        "CUB-200-2011 was not found.",
        f"Neither {home / FOLDER / 'images.txt'} nor {home / 'images.txt'} exists.",
        f"Download CUB_200_2011.tgz (Caltech-UCSD Birds-200-2011) from Caltech and unpack it in {home}, so that "
        f"{home / FOLDER / 'images.txt'} exists; or name the folder that holds {FOLDER} with --data-dir.",
    )


def _read(file: Path, what: str, parse: Callable[[str], Any]) -> dict[int, Entry]:
    """An annotation file by id; each line is an id, a space and `what`, which `parse` understands or refuses.

    Raises:
        ToastError: there is no such file, or one of its lines is not like that.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ToastError(
            f"The annotation file {file} cannot be read.", str(error), f"Unpack {FOLDER}.tgz anew."
        ) from error
    entries: dict[int, Entry] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        identifier, _, rest = line.strip().partition(" ")
        try:
            if not identifier.isdecimal() or not rest:
                raise ValueError(f"expected an id and {what}")
            if int(identifier) in entries:
                raise ValueError(f"id {identifier} was on line {entries[int(identifier)].line} already")
            entries[int(identifier)] = Entry(number, parse(rest.strip()))
        except ValueError as error:
            _refuse(file, number, f"{error}; found '{line}'")
    return entries


def _of_each_image(file: Path, what: str, parse: Callable[[str], Any], images: dict[int, Entry]) -> dict[int, Entry]:
    """An annotation file that says one thing about every image.

    Raises:
        ToastError: as `_read`, or an image has no line, or a line no image.
    """
    entries = _read(file, what, parse)
    for identifier, entry in entries.items():
        if identifier not in images:
            _refuse(file, entry.line, f"image {identifier} is not in images.txt")
    for identifier, image in images.items():
        if identifier not in entries:
            _refuse(file.with_name("images.txt"), image.line, f"image {identifier} has no line in {file.name}")
    return entries


def _flag(text: str) -> bool:
    if text not in {"0", "1"}:
        raise ValueError("expected 1 for train or 0 for test")
    return text == "1"


def _box(text: str) -> Box:
    try:
        x, y, width, height = map(float, text.split())
    except ValueError:
        raise ValueError("expected four numbers: x, y, width and height") from None
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise ValueError("a box needs finite numbers, its width and height above zero")
    return x, y, width, height


def _require_files(root: Path, images: dict[int, Entry]) -> None:
    """A missing image is said now, not in the middle of a training run."""
    missing = [entry for entry in images.values() if not (root / "images" / entry.value).is_file()]
    if missing:
        raise ToastError(
            f"{len(missing):,} of {len(images):,} images of {root / 'images.txt'} are missing.",
            f"The first is {root / 'images' / missing[0].value} (line {missing[0].line}).",
            f"Unpack {FOLDER}.tgz anew.",
        )


def _refuse(file: Path, line: int, why: str) -> NoReturn:
    raise ToastError(f"{file}, line {line}: {why}.", what_to_do=f"Unpack {FOLDER}.tgz anew, or mend the line.")
