"""The text files that CUB-200-2011 and NABirds share: a line per image, its id and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from toast_cli.data.datasets.fgvc import AnnotatedDataset, group_by_split
from toast_cli.data.images.file_split import FileSplit
from toast_cli.data.images.files import read_text_file
from toast_cli.data.images.object_masks import Box, Discs, MaskFile, Region
from toast_cli.utils.errors import ToastError

PART_RADIUS_RATIO = 0.1
"""Radius of a part's disc as a share of the box's longer side (ours): the sets give the middle of a part alone."""


@dataclass(frozen=True)
class BirdLayout:
    """How one set fills the files.

    `archive` is what is to be unpacked anew when one is damaged. With `numbered` ids are numbers and give the order of
    the images; else they are any word, in the order of their lines. With `every_class`, all of `classes.txt` are
    classes of the data; else those that have images.
    """

    archive: str
    numbered: bool = True
    every_class: bool = True


@dataclass(frozen=True)
class AnnotationLine:
    """What an annotation file says about one id, and on which line."""

    line: int
    value: Any


def read_bird_annotations(
    root: Path, layout: BirdLayout, mask: Literal["box", "parts", "segmentation"]
) -> AnnotatedDataset:
    """The annotations below `root`; no image is opened. `mask` says what of them marks the bird.

    Raises:
        ToastError: an annotation file is missing or has an odd line.
    """
    read = _AnnotationReader(root, layout)
    images = read.file("images.txt", "a path", str)
    named = read.file("classes.txt", "a class name", str)

    def class_id(text: str) -> str:
        if text not in named:
            raise ValueError(f"class {text} is not in classes.txt")
        return text

    given = read.read_per_image("image_class_labels.txt", "a class id", class_id, images)
    in_train = read.read_per_image("train_test_split.txt", "1 for train or 0 for test", _parse_flag, images)
    boxes = read.read_per_image("bounding_boxes.txt", "x, y, width and height", _parse_box, images)
    used = {entry.value for entry in given.values()}
    class_ids = sorted(named if layout.every_class else used, key=int)
    label_of = {identifier: label for label, identifier in enumerate(class_ids)}
    ids = sorted(images, key=int) if layout.numbered else list(images)
    names = [images[i].value for i in ids]
    everything = FileSplit(
        root / "images",
        tuple(names),
        tuple(label_of[given[i].value] for i in ids),
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
        points = read.parts(names)
        return tuple(Discs(points[i], PART_RADIUS_RATIO * max(box.width, box.height)) for i, box in boxes.items())
    places = [read.root / "segmentations", read.root.parent / "segmentations"]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise ToastError(
            f"There is no folder {places[0]}.",
            "Segmentations come in an archive of their own.",
            f"Unpack segmentations.tgz in {read.root}, or use dataset.mask=box.",
            code="data.missing-folder",
        )
    return tuple(MaskFile((folder / name).with_suffix(".png"), _threshold_segmentation) for name in names.values())


def _threshold_segmentation(pixels: Any) -> Any:
    """CUB's segmentations are grey, brighter the more of the annotators took a pixel for bird."""
    return pixels[..., 0] >= 128


class _AnnotationReader:
    """Reads annotation files line by line, and says which line is odd."""

    def __init__(self, root: Path, layout: BirdLayout) -> None:
        self.root, self.layout = root, layout

    def file(self, name: str, what: str, parse: Callable[[str], Any]) -> dict[str, AnnotationLine]:
        """A file by id; each line is an id, a space and `what`, which `parse` understands or refuses.

        Raises:
            ToastError: there is no such file, or one of its lines is not like that.
        """
        entries: dict[str, AnnotationLine] = {}
        for number, identifier, rest, line in self._lines(name):
            try:
                # The ids of classes are numbers in both sets, those of images in one of them.
                numeric = self.layout.numbered or name == "classes.txt"
                if not rest or (numeric and not identifier.isdecimal()):
                    raise ValueError(f"expected an id and {what}")
                if identifier in entries:
                    raise ValueError(f"id {identifier} was on line {entries[identifier].line} already")
                entries[identifier] = AnnotationLine(number, parse(rest))
            except ValueError as error:
                self.refuse(name, number, f"{error}; found '{line}'")
        return entries

    def read_per_image(
        self, name: str, what: str, parse: Callable[[str], Any], images: Mapping[str, AnnotationLine]
    ) -> dict[str, AnnotationLine]:
        """A file that says one thing about every image.

        Raises:
            ToastError: as `file`, or an image has no line, or a line no image.
        """
        entries = self.file(name, what, parse)
        for identifier, entry in entries.items():
            if identifier not in images:
                self.refuse(name, entry.line, f"image {identifier} is not in images.txt")
        for identifier, image in images.items():
            if identifier not in entries:
                self.refuse("images.txt", image.line, f"image {identifier} has no line in {name}")
        return entries

    def parts(self, images: Mapping[str, Any]) -> dict[str, tuple[tuple[float, float], ...]]:
        """The visible parts of every image.

        Raises:
            ToastError: there is no such file, or one of its lines is odd.
        """
        name = "parts/part_locs.txt"
        found: dict[str, list[tuple[float, float]]] = {identifier: [] for identifier in images}
        for number, identifier, rest, line in self._lines(name):
            try:
                if identifier not in found:
                    raise ValueError(f"image {identifier} is not in images.txt")
                _, x, y, visible = rest.split()
                if _parse_flag(visible):
                    point = float(x), float(y)
                    if not all(map(math.isfinite, point)):
                        raise ValueError("a part needs finite numbers")
                    found[identifier].append(point)
            except ValueError as error:
                self.refuse(name, number, f"expected an image, a part, x, y and 0 or 1 ({error}); found '{line}'")
        return {identifier: tuple(points) for identifier, points in found.items()}

    def _lines(self, name: str) -> list[tuple[int, str, str, str]]:
        """Number, id, rest and all of every line that is not empty."""
        file = self.root / name
        try:
            lines = read_text_file(file).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ToastError(
                f"The annotation file {file} cannot be read.",
                str(error),
                f"Unpack {self.layout.archive} anew.",
                code="data.unreadable-file",
            ) from error
        parted = [(number, line.strip().partition(" "), line) for number, line in enumerate(lines, start=1)]
        return [(number, first, rest.strip(), line) for number, (first, _, rest), line in parted if first]

    def refuse(self, name: str, line: int, why: str) -> NoReturn:
        """A line is odd."""
        raise ToastError(
            f"{self.root / name}, line {line}: {why}.",
            what_to_do=f"Unpack {self.layout.archive} anew, or mend the line.",
            code="data.invalid-annotation",
        )


def _get_unique_class_names(class_ids: list[str], named: Mapping[str, AnnotationLine]) -> tuple[str, ...]:
    """The names of the classes; where two share one, each with its id."""
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
