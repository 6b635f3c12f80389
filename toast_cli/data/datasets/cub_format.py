"""The text files that CUB-200-2011 and NABirds share: one line per image, with its id and a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from toast_cli.data.datasets.fgvc import AnnotatedDataset, group_by_split
from toast_cli.data.images.files import read_text_file
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.images.object_masks import Box, Discs, MaskFile, Region
from toast_cli.utils.errors import ToastError

PART_RADIUS_RATIO = 0.1
"""Radius of the disc around a part, relative to the longer side of the box.

The data sets only give the center of a part; the radius is our choice.
"""


@dataclass(frozen=True)
class BirdLayout:
    """Differences between the data sets that use this format.

    Args:
        archive: The archive that contains the files, for error messages.
        numbered: Whether image ids are numbers that give the order of the images. Otherwise an id is any word, and
            images are in the order of their lines.
        every_class: Whether every entry of `classes.txt` is a class. Otherwise only entries with images are classes.
    """

    archive: str
    numbered: bool = True
    every_class: bool = True


@dataclass(frozen=True)
class AnnotationLine:
    """The value of one id in an annotation file, and its line number."""

    line: int
    value: Any


def read_bird_annotations(
    root: Path, layout: BirdLayout, mask: Literal["box", "parts", "segmentation"]
) -> AnnotatedDataset:
    """Read the annotations below `root`, without opening any image.

    Args:
        root: The folder that contains `images.txt`.
        layout: The variant of the format.
        mask: The annotation that becomes the mask of a sample.

    Raises:
        ToastError: If an annotation file is missing or a line is invalid.
    """
    read = _AnnotationReader(root, layout)
    images = read.read_file("images.txt", "a path", str)
    named = read.read_file("classes.txt", "a class name", str)

    def class_id(text: str) -> str:
        if text not in named:
            raise ValueError(f"class {text} is not in classes.txt")
        return text

    class_of = read.read_per_image("image_class_labels.txt", "a class id", class_id, images)
    in_train = read.read_per_image("train_test_split.txt", "1 for train or 0 for test", _parse_flag, images)
    boxes = read.read_per_image("bounding_boxes.txt", "x, y, width and height", _parse_box, images)
    used = {entry.value for entry in class_of.values()}
    class_ids = sorted(named if layout.every_class else used, key=int)
    label_of = {identifier: label for label, identifier in enumerate(class_ids)}
    ids = sorted(images, key=int) if layout.numbered else list(images)
    names = [images[i].value for i in ids]
    everything = FileSplit(
        root / "images",
        tuple(names),
        tuple(label_of[class_of[i].value] for i in ids),
        _build_regions(read, mask, dict(zip(ids, names, strict=True)), {i: boxes[i].value for i in ids}),
    )
    splits = group_by_split(everything, ["train" if in_train[i].value else "test" for i in ids])
    return AnnotatedDataset(_get_unique_class_names(class_ids, named), {"train": everything.take([]), **splits})


def _build_regions(
    read: _AnnotationReader, mask: str, names: Mapping[str, str], boxes: Mapping[str, Box]
) -> tuple[Region, ...]:
    if mask == "box":
        return tuple(boxes.values())
    if mask == "parts":
        points = read.read_part_centers(names)
        return tuple(Discs(points[i], PART_RADIUS_RATIO * max(box.width, box.height)) for i, box in boxes.items())
    places = [read.root / "segmentations", read.root.parent / "segmentations"]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise ToastError(
            f"The folder {places[0]} does not exist.",
            "Segmentations are in a separate archive.",
            f"Unpack segmentations.tgz in {read.root}, or use dataset.mask=box.",
            code="data.missing-folder",
        )
    return tuple(MaskFile((folder / name).with_suffix(".png"), _threshold_segmentation) for name in names.values())


def _threshold_segmentation(pixels: Any) -> Any:
    """Return the pixels that most annotators marked. A pixel is brighter the more annotators marked it as bird."""
    return pixels[..., 0] >= 128


class _AnnotationReader:
    """Reader of annotation files that reports the file and line of an invalid entry."""

    def __init__(self, root: Path, layout: BirdLayout) -> None:
        self.root, self.layout = root, layout

    def read_file(self, name: str, what: str, parse: Callable[[str], Any]) -> dict[str, AnnotationLine]:
        """Return the entries of a file by id. Each line is an id, a space and a value that `parse` converts.

        Args:
            name: The file, relative to the root.
            what: A description of the value, for error messages.
            parse: Converts the value; raises ValueError if it is invalid.

        Raises:
            ToastError: If the file cannot be read or a line is invalid.
        """
        entries: dict[str, AnnotationLine] = {}
        for number, identifier, rest, line in self._iterate_lines(name):
            try:
                # Class ids are numbers in both data sets, image ids only in CUB.
                numeric = self.layout.numbered or name == "classes.txt"
                if not rest or (numeric and not identifier.isdecimal()):
                    raise ValueError(f"expected an id and {what}")
                if identifier in entries:
                    raise ValueError(f"id {identifier} already appears on line {entries[identifier].line}")
                entries[identifier] = AnnotationLine(number, parse(rest))
            except ValueError as error:
                self.raise_line_error(name, number, f"{error}; got '{line}'")
        return entries

    def read_per_image(
        self, name: str, what: str, parse: Callable[[str], Any], images: Mapping[str, AnnotationLine]
    ) -> dict[str, AnnotationLine]:
        """Return the entries of a file that has exactly one line per image.

        Raises:
            ToastError: If the file cannot be read, a line is invalid, an image has no line or a line has no image.
        """
        entries = self.read_file(name, what, parse)
        for identifier, entry in entries.items():
            if identifier not in images:
                self.raise_line_error(name, entry.line, f"image {identifier} is not in images.txt")
        for identifier, image in images.items():
            if identifier not in entries:
                self.raise_line_error("images.txt", image.line, f"image {identifier} has no line in {name}")
        return entries

    def read_part_centers(self, images: Mapping[str, Any]) -> dict[str, tuple[tuple[float, float], ...]]:
        """Return the centers (x, y) of the visible parts of every image.

        Raises:
            ToastError: If the file cannot be read or a line is invalid.
        """
        name = "parts/part_locs.txt"
        centers: dict[str, list[tuple[float, float]]] = {identifier: [] for identifier in images}
        for number, identifier, rest, line in self._iterate_lines(name):
            try:
                if identifier not in centers:
                    raise ValueError(f"image {identifier} is not in images.txt")
                _, x, y, visible = rest.split()
                if _parse_flag(visible):
                    point = float(x), float(y)
                    if not all(map(math.isfinite, point)):
                        raise ValueError("the center of a part must be finite")
                    centers[identifier].append(point)
            except ValueError as error:
                self.raise_line_error(
                    name, number, f"expected an image id, a part id, x, y and 0 or 1 ({error}); got '{line}'"
                )
        return {identifier: tuple(points) for identifier, points in centers.items()}

    def _iterate_lines(self, name: str) -> list[tuple[int, str, str, str]]:
        """Return number, id, value and full text of every line that is not blank."""
        file = self.root / name
        try:
            lines = read_text_file(file).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ToastError(
                f"Cannot read the annotation file {file}.",
                str(error),
                f"Unpack {self.layout.archive} again.",
                code="data.unreadable-file",
            ) from error
        split = [(number, line.strip().partition(" "), line) for number, line in enumerate(lines, start=1)]
        return [(number, first, rest.strip(), line) for number, (first, _, rest), line in split if first]

    def raise_line_error(self, name: str, line: int, why: str) -> NoReturn:
        """Raise a ToastError about an invalid line."""
        raise ToastError(
            f"{self.root / name}, line {line}: {why}.",
            what_to_do=f"Unpack {self.layout.archive} again, or correct the line.",
            code="data.invalid-annotation",
        )


def _get_unique_class_names(class_ids: list[str], named: Mapping[str, AnnotationLine]) -> tuple[str, ...]:
    """Return the names of the classes. A name that several classes share is followed by the id of the class."""
    names = [named[identifier].value for identifier in class_ids]
    return tuple(
        name if names.count(name) == 1 else f"{name} ({identifier})"
        for name, identifier in zip(names, class_ids, strict=True)
    )


def _parse_flag(text: str) -> bool:
    if text not in {"0", "1"}:
        raise ValueError("expected 1 for train or 0 for test" if text else "expected 1 or 0")
    return text == "1"


def _parse_box(text: str) -> Box:
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise ValueError("expected four numbers: x, y, width and height")
    return Box(*numbers)
