"""Oxford Flowers-102: 102 flower categories with a segmentation per image, in the official layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.datasets.fgvc import (
    AnnotatedDataset,
    FgvcOptions,
    PublishedDataset,
    group_by_split,
    open_published_dataset,
)
from toast_cli.data.datasets.matlab import flatten_column, read_matlab
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.images.object_masks import MaskFile
from toast_cli.utils.errors import ToastError

FLOWERS = PublishedDataset(
    title="Oxford Flowers-102",
    folders=("flowers-102", "OxfordFlower", "oxford_flowers102", "102flowers"),
    marker="imagelabels.mat",
    archives="102flowers.tgz, imagelabels.mat and setid.mat",
    home="https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
    sizes={lists: {"train": 1_020, "val": 1_020, "test": 6_149} for lists in ("official", "json")},
    classes=102,
    inner="jpg/",
)

SEGMENTATION_FOLDER = "segmim"
SPLIT_VARIABLES = {"trnid": "train", "valid": "val", "tstid": "test"}


class FlowersOptions(FgvcOptions):
    """Options of Oxford Flowers-102. The official lists include a validation split."""

    name: Literal["flowers"] = Field("flowers", description="the data set")


def open_flowers(options: FlowersOptions, data_dir: Path | None) -> DataSet:
    """Read the annotation files, without opening any image.

    If the folder `segmim` exists, the mask of a sample is its segmentation.

    Raises:
        ToastError: If the data is missing, or the annotations are invalid.
    """
    return open_published_dataset(FLOWERS, options, data_dir, _read_annotations)


SOURCE = DataSource(
    FlowersOptions,
    open_flowers,
    FLOWERS.needs,
    home=FLOWERS.home,
    layout=("flowers-102/\n  imagelabels.mat  setid.mat\n  jpg/image_00001.jpg\n  segmim/segmim_00001.jpg  (masks)"),
)


def _read_annotations(root: Path, options: FlowersOptions) -> AnnotatedDataset:
    labels = flatten_column(read_matlab(root / FLOWERS.marker, "labels", archive=FLOWERS.archives)["labels"])
    lists = read_matlab(root / "setid.mat", *SPLIT_VARIABLES, archive=FLOWERS.archives)
    part_of: dict[int, str] = {}
    for variable, part in SPLIT_VARIABLES.items():
        for number in map(int, flatten_column(lists[variable])):
            if not 1 <= number <= len(labels):
                raise _make_annotation_error(
                    root, f"{variable} lists image {number}, but there are only {len(labels):,} images"
                )
            if number in part_of:
                raise _make_annotation_error(root, f"image {number} is in two splits: {part_of[number]} and {part}")
            part_of[number] = part
    numbers = sorted(part_of)
    ids = sorted({int(labels[number - 1]) for number in numbers})
    label_of = {identifier: label for label, identifier in enumerate(ids)}
    segmented = (root / SEGMENTATION_FOLDER).is_dir()
    everything = FileSplit(
        root,
        tuple(f"jpg/image_{number:05d}.jpg" for number in numbers),
        tuple(label_of[int(labels[number - 1])] for number in numbers),
        tuple(MaskFile(root / SEGMENTATION_FOLDER / f"segmim_{number:05d}.jpg", _is_foreground) for number in numbers)
        if segmented
        else None,
    )
    notes = (
        () if segmented else (f"no masks: unpack 102segmentations.tgz in {root} to get the outlines of the flowers",)
    )
    return AnnotatedDataset(
        tuple(map(str, ids)), group_by_split(everything, [part_of[number] for number in numbers]), notes
    )


def _is_foreground(pixels: Any) -> Any:
    """Return the pixels that are not background. The background is pure blue, slightly changed by JPEG compression."""
    red, green, blue = (pixels[..., channel].astype(int) for channel in range(3))
    return ~((blue > 150) & (red < 90) & (green < 90))


def _make_annotation_error(root: Path, why: str) -> ToastError:
    return ToastError(
        f"{root / 'setid.mat'}: {why}.",
        what_to_do="Download setid.mat and imagelabels.mat again.",
        code="data.invalid-annotation",
    )
