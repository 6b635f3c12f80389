"""Images paired with class maps: the split of all segmentation data sets on disk.

A class map is an image file with one channel whose values are classes; in a palette image, these are the indices.
Files are opened on demand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from unicodedata import normalize

from pydantic import Field

from toast_cli.data.base import DataSet, Sample, SplitKind
from toast_cli.data.images.files import compute_file_stamp
from toast_cli.data.images.folder_scan import list_images
from toast_cli.data.splits import compute_split_hash, hold_out
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError
from toast_cli.utils.hashing import hash_text

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

UNLABELLED_PIXEL = 255
"""Value of a pixel without a class."""


class SegmentationDataOptions(NamedOptions):
    """Options of the validation split that a segmentation source makes itself."""

    val_fraction: float = Field(
        0.1, ge=0, lt=1, description="fraction of the training images held out if there is no validation split"
    )
    split_seed: int = Field(
        0, ge=0, examples=[1], description="seed of the splits made here, independent of the run's seed"
    )


@dataclass(frozen=True)
class SegmentationSplit:
    """Image files, each with a class map.

    Args:
        pairs: paths of the image and the class map of every sample.
        classes: number of classes; any other value except 255 is an error.
        reduce_zero_label: the value 0 means no class, and 1 is the first class.
        white: value of white in 16-bit images (`images.white`).
    """

    kind: ClassVar[SplitKind] = "pixels"

    pairs: tuple[tuple[Path, Path], ...]
    classes: int
    reduce_zero_label: bool = False
    has_masks: bool = False
    white: int | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def labels(self) -> list[int]:
        """The label -1 for every image: labels belong to pixels."""
        return [-1] * len(self)

    @property
    def names(self) -> list[str]:
        """File names of the images."""
        return [image.name for image, _ in self.pairs]

    @property
    def folders(self) -> frozenset[Path]:
        """Folders of the images and of the class maps."""
        return frozenset(file.parent for pair in self.pairs for file in pair)

    def take(self, indices: Sequence[int]) -> SegmentationSplit:
        """Return the split of the samples at `indices`, in that order."""
        return replace(self, pairs=tuple(self.pairs[i] for i in indices))

    def stamp(self, index: int) -> int:
        """Return a number that changes with the content of the files of a sample."""
        stamps = [compute_file_stamp(file) for file in self.pairs[index]]
        return int(hash_text(repr(stamps))[:12], 16)

    def with_white(self, white: int) -> SegmentationSplit:
        """Return the same split with another value of white."""
        return replace(self, white=white)

    def load(self, index: int) -> Sample:
        """Read one image and its class map.

        Raises:
            ToastError: a file cannot be read, the sizes differ, a value is not a class, or the image is too thin.
        """
        from toast_cli.data.images.decode import open_image

        image_path, map_path = self.pairs[index]
        image = open_image(image_path, self.white)
        require_segmentable(image, str(image_path))
        classes = read_class_map(map_path, self.classes, self.reduce_zero_label)
        if classes.shape != (image.height, image.width):
            raise ToastError(
                f"The class map {map_path} does not match the size of its image {image_path}.",
                f"The map has {classes.shape[1]}×{classes.shape[0]} pixels, the image {image.width}×{image.height}.",
                "Save the class map at the size of the image, after its EXIF orientation, or remove both.",
                code="data.mask-size-mismatch",
            )
        return Sample(image, -1, image_path.name, classes=classes)


MAX_ASPECT_RATIO = 128
"""Ratio of the sides of an image above which it is not segmented: windows and scores would not fit into memory."""


def require_segmentable(image: Image, name: str = "") -> None:
    """Check that an image is not too thin to be resized by its shorter side.

    Raises:
        ToastError: one side is more than `MAX_ASPECT_RATIO` times the other.
    """
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ToastError(
            f"The image {name} is too thin for segmentation.".replace("image  is", "image is"),
            f"It has {image.width:,}×{image.height:,} pixels; one side may be at most {MAX_ASPECT_RATIO} times the "
            "other.",
            "Cut it into pieces, or remove it.",
            code="image.too-thin",
        )


LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000")
"""Pillow's names of lossy formats, which change values."""


def read_class_map(path: Path, classes: int, reduce_zero_label: bool = False) -> np.ndarray:
    """Read a class map as `[H, W]` uint8, 255 for no class, turned as its EXIF orientation says.

    Raises:
        ToastError: the file cannot be read, has several channels or a lossy format, or has a value that is not a class.
    """
    import numpy as np
    from PIL import UnidentifiedImageError

    from toast_cli.data.images.decode import explain_unknown_format, open_pillow_file
    from toast_cli.data.images.upright import turn_upright

    try:
        with open_pillow_file(path) as file:
            kind, mode, values = file.format, file.mode, np.asarray(turn_upright(file))
    except Exception as error:  # Pillow's decoders raise arbitrary exceptions on damaged files
        unknown = isinstance(error, UnidentifiedImageError)
        raise ToastError(
            f"Cannot read the class map {path}.",
            explain_unknown_format(path) if unknown else f"{type(error).__name__}: {error}",
            "Replace the file, or remove it and its image.",
            code="data.unreadable-class-map",
        ) from error
    if values.ndim != 2:
        raise ToastError(
            f"The class map {path} has several channels (Pillow mode {mode}).",
            "A class map has one channel whose values are classes: 0, 1, 2, ..., and 255 for none.",
            "Save it as a greyscale or palette PNG.",
            code="data.coloured-class-map",
        )
    if kind in LOSSY_FORMATS:
        raise ToastError(
            f"The class map {path} is a {kind} file.",
            "Lossy compression changes values, so that wrong classes appear between regions.",
            "Export it again as a PNG from its source.",
            code="data.lossy-class-map",
        )
    found = values.astype(np.int64)
    if (found != values).any():
        raise ToastError(
            f"The class map {path} has values that are not integers (Pillow mode {mode}).",
            what_to_do="Save it as a greyscale or palette PNG whose values are classes.",
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
            f"The class map {path} has values that are not classes.",
            f"It has {listed}{' and more' if len(odd) > 5 else ''}; there are {classes} classes, {first} to "
            f"{first + classes - 1}, and 255 for none" + (" (0 too: reduce_zero_label)." if reduce_zero_label else "."),
            "Correct the file, or list all classes.",
            code="data.unknown-class",
        )
    return found.astype(np.uint8)


def hold_out_validation(
    train: SegmentationSplit, options: SegmentationDataOptions
) -> tuple[dict[str, SegmentationSplit], str]:
    """Split `train` into `train` and `val`, and return a note on it."""
    names, labels = train.names, [0] * len(train)
    kept, held = hold_out(names, labels, options.val_fraction, options.split_seed)
    if not held:
        note = f"validation: none was held out (fraction {options.val_fraction:g}, or a single image)"
        return {"train": train}, note
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
    """Build a published data set whose test labels are not public; its official validation images become `test`.

    `published` are the sizes of the two official lists. `note` describes the second one.
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
    """Pair the images below a folder with the class maps below another by their relative paths without suffix.

    Raises:
        ToastError: a file has no counterpart, or two files differ only in their suffix; the message names them.
    """
    of_image, of_map = _index_by_stem(images), _index_by_stem(maps)
    for files, others, description, other, folder in (
        (of_image, of_map, f"images in {images}", "class map", maps),
        (of_map, of_image, f"class maps in {maps}", "image", images),
    ):
        missing = [name for name in sorted(files) if name not in others]
        if missing:
            listed = ", ".join(files[name].name for name in missing[:3])
            raise ToastError(
                f"{len(missing):,} of {len(files):,} {description} have no {other}: "
                f"{listed}{' and more' if len(missing) > 3 else ''}.",
                f"The first is {files[missing[0]]}; {folder} has no file {missing[0]} with any suffix.",
                f"Add the missing {other}s, or remove the files without one.",
                code="data.unpaired-files",
            )
    return tuple((of_image[name], of_map[name]) for name in sorted(of_image))


def _index_by_stem(folder: Path) -> dict[str, Path]:
    """Return the images below a folder by their relative path without suffix, in the composed form of Unicode."""
    found: dict[str, Path] = {}
    for path in list_images(folder):
        name = normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        if name in found:
            raise ToastError(
                f"{found[name]} and {path.name} differ only in their suffix.",
                what_to_do="Remove one.",
                code="data.duplicate-image",
            )
        found[name] = path
    return found


def build_segmentation_dataset(
    classes: tuple[str, ...], splits: Mapping[str, SegmentationSplit], notes: Sequence[str]
) -> DataSet:
    """Build a data set with labels for pixels."""
    return DataSet(classes, splits, tuple(notes))
