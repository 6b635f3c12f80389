"""Images and class maps, file by file: what the sources of labelled pixels on disk share.

A class map is a picture of one channel (a palette's colours do not count) whose values are classes. Nothing is opened
until asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from toast_cli.data.base import DataSet, Sample, SplitKind
from toast_cli.data.images.folder_scan import list_images
from toast_cli.data.splits import compute_split_hash, hold_out
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    import numpy as np

UNLABELLED_PIXEL = 255
"""The value of a pixel without a class."""


class SegmentationDataOptions(NamedOptions):
    """What a source of class maps can be told about the validation split it has to make itself."""

    val_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of the training images held out where there is no validation split"
    )
    split_seed: int = Field(0, ge=0, description="seed of every split that is made, apart from the run's own seed")


@dataclass(frozen=True)
class SegmentationSplit:
    """Image files, each with its class map.

    Args:
        pairs: image and class map, in order.
        classes: how many there are; every other value but 255 is an error.
        reduce_zero_label: 0 means no class, and 1 is the first.
    """

    kind: ClassVar[SplitKind] = "pixels"

    pairs: tuple[tuple[Path, Path], ...]
    classes: int
    reduce_zero_label: bool = False
    has_masks: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def labels(self) -> list[int]:
        """No image has a label of its own: -1."""
        return [-1] * len(self)

    @property
    def names(self) -> list[str]:
        """The images' file names."""
        return [image.name for image, _ in self.pairs]

    @property
    def folders(self) -> frozenset[Path]:
        """The folders of the images and of the class maps."""
        return frozenset(file.parent for pair in self.pairs for file in pair)

    def take(self, indices: Sequence[int]) -> SegmentationSplit:
        """The samples at `indices`, in that order."""
        return replace(self, pairs=tuple(self.pairs[i] for i in indices))

    def load(self, index: int) -> Sample:
        """Read one image and its class map.

        Raises:
            ToastError: either cannot be read, they differ in size, or a value is no class.
        """
        from toast_cli.data.images.decode import open_image

        image_path, map_path = self.pairs[index]
        image = open_image(image_path)
        classes = read_class_map(map_path, self.classes, self.reduce_zero_label)
        if classes.shape != (image.height, image.width):
            raise ToastError(
                f"The class map {map_path} does not fit its image {image_path}.",
                f"It is {classes.shape[1]}×{classes.shape[0]} pixels, the image {image.width}×{image.height}.",
                "Save the class map at the image's size (and upright, if a camera turned the image), or remove both.",
                code="data.mask-size-mismatch",
            )
        return Sample(image, -1, image_path.name, classes=classes)


LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000")
"""Pillow's formats that do not keep values as they are."""


def read_class_map(path: Path, classes: int, reduce_zero_label: bool = False) -> np.ndarray:
    """The classes in a file: `[H, W]` uint8, 255 where there is none.

    Raises:
        ToastError: it cannot be read, holds colours, or holds a value that is no class.
    """
    import numpy as np

    from toast_cli.data.images.decode import open_pillow_file

    try:
        with open_pillow_file(path) as file:
            kind, mode, values = file.format, file.mode, np.asarray(file)
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them trip over
        raise ToastError(
            f"The class map {path} cannot be read.",
            f"{type(error).__name__}: {error}",
            "Replace the file, or remove it and its image.",
            code="data.unreadable-class-map",
        ) from error
    if values.ndim != 2:
        raise ToastError(
            f"The class map {path} holds colours (Pillow's mode {mode}).",
            "A class map has one channel, whose values are classes: 0, 1, 2, ..., and 255 for none.",
            "Save it as a grey or palette PNG.",
            code="data.coloured-class-map",
        )
    if kind in LOSSY_FORMATS:
        raise ToastError(
            f"The class map {path} is a {kind}.",
            "Its compression blurs values: between two classes, others appear that nobody labelled.",
            "Make it again from the source as a PNG.",
            code="data.lossy-class-map",
        )
    found = values.astype(np.int64)
    if (found != values).any():
        raise ToastError(
            f"The class map {path} has values that are no whole numbers (Pillow's mode {mode}).",
            what_to_do="Save it as a grey or palette PNG whose values are classes.",
            code="data.fractional-class-map",
        )
    if reduce_zero_label:
        found = np.where((found == 0) | (found == UNLABELLED_PIXEL), UNLABELLED_PIXEL, found - 1)
    unknown = (found != UNLABELLED_PIXEL) & ((found < 0) | (found >= classes))
    if unknown.any():
        odd, counts = np.unique(values[unknown], return_counts=True)
        listed = ", ".join(f"{value} ({count:,} pixels)" for value, count in zip(odd[:5], counts[:5], strict=True))
        first = 1 if reduce_zero_label else 0
        raise ToastError(
            f"The class map {path} has values that are no class.",
            f"It has {listed}{' and more' if len(odd) > 5 else ''}; there are {classes} classes, {first} to "
            f"{first + classes - 1}, and 255 for none" + (" (0 too: reduce_zero_label)." if reduce_zero_label else "."),
            "Mend the file, or name every class.",
            code="data.unknown-class",
        )
    return found.astype(np.uint8)


def hold_out_validation(
    train: SegmentationSplit, options: SegmentationDataOptions
) -> tuple[dict[str, SegmentationSplit], str]:
    """`train` and, held out of it, `val`, and the note that says so."""
    names, labels = train.names, [0] * len(train)
    kept, held = hold_out(names, labels, options.val_fraction, options.split_seed)
    if not held:
        return {"train": train}, f"validation: none was held out (fraction {options.val_fraction:g}, or a single image)"
    digest = compute_split_hash([names[i] for i in held], [0] * len(held))
    return {"train": train.take(kept), "val": train.take(held)}, (
        f"validation: {100 * options.val_fraction:g}% of train held out ({len(held):,} images), "
        f"seed {options.split_seed}, split {digest}"
    )


def build_official_dataset(
    classes: tuple[str, ...],
    train: SegmentationSplit,
    test: SegmentationSplit,
    published: tuple[int, int],
    options: SegmentationDataOptions,
    note: str,
) -> DataSet:
    """A published set whose test labels are not public, so that its official validation images are the `test`.

    `published` are how many images the two official lists have, `note` names the second.
    """
    notes = [note]
    if (len(train), len(test)) != published:
        notes.append(
            f"This copy holds {len(train):,} training and {len(test):,} validation images; "
            f"the published lists have {published[0]:,} and {published[1]:,}."
        )
    splits, made = hold_out_validation(train, options)
    return build_segmentation_dataset(classes, {**splits, "test": test}, [*notes, made])


def match_images_to_maps(images: Path, maps: Path) -> tuple[tuple[Path, Path], ...]:
    """The images below a folder and the class maps below another, paired by their path in it but for the ending.

    Raises:
        ToastError: one has no other, or two share a name; they are named.
    """
    of_image, of_map = _index_by_stem(images), _index_by_stem(maps)
    for alone, others, words, other, place in (
        (of_image, of_map, f"images in {images}", "class map", maps),
        (of_map, of_image, f"class maps in {maps}", "image", images),
    ):
        missing = [name for name in sorted(alone) if name not in others]
        if missing:
            named = ", ".join(alone[name].name for name in missing[:3])
            raise ToastError(
                f"{len(missing):,} of {len(alone):,} {words} have no {other}: "
                f"{named}{' and more' if len(missing) > 3 else ''}.",
                f"The first is {alone[missing[0]]}; nothing in {place} is called {missing[0]} but for the ending.",
                f"Add the {other}s, or remove what has none.",
                code="data.unpaired-files",
            )
    return tuple((of_image[name], of_map[name]) for name in sorted(of_image))


def _index_by_stem(folder: Path) -> dict[str, Path]:
    """The images below a folder by their path in it without the ending."""
    found: dict[str, Path] = {}
    for path in list_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise ToastError(
                f"{found[name]} and {path.name} share a name but for the ending.",
                what_to_do="Remove one.",
                code="data.duplicate-image",
            )
        found[name] = path
    return found


def build_segmentation_dataset(
    classes: tuple[str, ...], splits: Mapping[str, SegmentationSplit], notes: Sequence[str]
) -> DataSet:
    """A data set whose pixels are labelled."""
    return DataSet(classes, splits, tuple(notes))
