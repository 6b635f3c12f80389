"""Oxford Flowers-102: 102 kinds of flowers with a segmentation per image, in the official layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, Source
from toast_cli.data.datasets.fgvc import Annotated, FgvcOptions, Published, by_split, open_published
from toast_cli.data.datasets.matlab import column, read_matlab
from toast_cli.data.images.file_split import FileSplit
from toast_cli.data.images.object_masks import Picture
from toast_cli.utils.errors import ToastError

FLOWERS = Published(
    title="Oxford Flowers-102",
    folders=("flowers-102", "OxfordFlower", "oxford_flowers102", "102flowers"),
    marker="imagelabels.mat",
    archives="102flowers.tgz, imagelabels.mat and setid.mat",
    home="https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
    sizes={lists: {"train": 1_020, "val": 1_020, "test": 6_149} for lists in ("official", "json")},
    classes=102,
    inner="jpg/",
)

SEGMENTATIONS = "segmim"
LISTS = {"trnid": "train", "valid": "val", "tstid": "test"}


class Options(FgvcOptions):
    """How the flowers are divided: their official lists have a validation split."""

    name: Literal["flowers"] = Field("flowers", description="the data set")


def open_flowers(options: Options, data_dir: Path | None) -> DataSet:
    """Read the annotation files; no image is opened. A sample's mask is its segmentation, where they are unpacked.

    Raises:
        ToastError: the data is not there, or its annotations do not say a class and a split for every image.
    """
    return open_published(FLOWERS, options, data_dir, _read)


SOURCE = Source(Options, open_flowers, FLOWERS.needs, home=FLOWERS.home)


def _read(root: Path, options: Options) -> Annotated:
    labels = column(read_matlab(root / FLOWERS.marker, "labels", archive=FLOWERS.archives)["labels"])
    lists = read_matlab(root / "setid.mat", *LISTS, archive=FLOWERS.archives)
    part_of: dict[int, str] = {}
    for variable, part in LISTS.items():
        for number in map(int, column(lists[variable])):
            if not 1 <= number <= len(labels):
                raise _odd(root, f"{variable} names image {number}, and there are {len(labels):,}")
            if number in part_of:
                raise _odd(root, f"image {number} is in two splits, {part_of[number]} and {part}")
            part_of[number] = part
    numbers = sorted(part_of)
    ids = sorted({int(labels[number - 1]) for number in numbers})
    label_of = {identifier: label for label, identifier in enumerate(ids)}
    segmented = (root / SEGMENTATIONS).is_dir()
    everything = FileSplit(
        root,
        tuple(f"jpg/image_{number:05d}.jpg" for number in numbers),
        tuple(label_of[int(labels[number - 1])] for number in numbers),
        tuple(Picture(root / SEGMENTATIONS / f"segmim_{number:05d}.jpg", _not_blue) for number in numbers)
        if segmented
        else None,
    )
    notes = () if segmented else (f"no masks: unpack 102segmentations.tgz in {root} for the flowers' outlines",)
    return Annotated(tuple(map(str, ids)), by_split(everything, [part_of[number] for number in numbers]), notes)


def _not_blue(pixels: Any) -> Any:
    """The segmentations show the flower on pure blue, which JPEG has blurred a little."""
    red, green, blue = (pixels[..., channel].astype(int) for channel in range(3))
    return ~((blue > 150) & (red < 90) & (green < 90))


def _odd(root: Path, why: str) -> ToastError:
    return ToastError(f"{root / 'setid.mat'}: {why}.", what_to_do="Fetch setid.mat and imagelabels.mat anew.")
