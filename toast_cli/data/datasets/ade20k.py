"""ADE20K in the version of the scene parsing challenge: 150 classes, official layout (`ADEChallengeData2016`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.images.files import read_text_file
from toast_cli.data.paths import get_data_dir
from toast_cli.data.segmentation.dataset import (
    SegmentationDataOptions,
    SegmentationSplit,
    build_official_dataset,
    match_images_to_maps,
)
from toast_cli.utils.errors import ToastError

ADE20K_FOLDER = "ADEChallengeData2016"
CLASS_TABLE = "objectInfo150.txt"
CLASS_COUNT = 150
OTHER_CLASS = "other"
ADE20K_SIZES = (20_210, 2_000)
"""Number of training and validation images in the published data set."""


class Ade20kOptions(SegmentationDataOptions):
    """Options of ADE20K. The official validation split is the test split."""

    name: Literal["ade20k"] = Field("ade20k", description="the data set")
    reduce_zero_label: bool = Field(
        True,
        description="ignore value 0 ('other'), as published results do; false: count it as the first of 151 classes",
    )


def open_ade20k(options: Ade20kOptions, data_dir: Path | None) -> DataSet:
    """Read the class names and the file names, without opening any image.

    The labels of the official test split are not public. Published results are on the official validation split, so it
    is the test split here. The validation split, which selects the epoch, is held out from the training images.

    Raises:
        ToastError: If the data is missing, an image has no class map (or the reverse), or the class names cannot be
            read.
    """
    root = _find_root(get_data_dir(data_dir))
    classes = _read_class_names(root / CLASS_TABLE)
    if not options.reduce_zero_label:
        classes = (OTHER_CLASS, *classes)
    train, test = (
        _read_split(root, part, len(classes), options.reduce_zero_label) for part in ("training", "validation")
    )
    note = "test: ADE20K's official validation split; the labels of the official test split are not public"
    return build_official_dataset(classes, train, test, ADE20K_SIZES, options, note)


SOURCE = DataSource(
    Ade20kOptions,
    open_ade20k,
    f"ADEChallengeData2016.zip unpacked in the data folder ({ADE20K_FOLDER}/images)",
    "segmentation",
    home="http://sceneparsing.csail.mit.edu",
    layout=(
        "ADEChallengeData2016/\n"
        "  objectInfo150.txt\n"
        "  images/training/*.jpg      images/validation/*.jpg\n"
        "  annotations/training/*.png annotations/validation/*.png"
    ),
)


def _find_root(home: Path) -> Path:
    for place in (home / ADE20K_FOLDER, home):
        if (place / "annotations").is_dir():
            return place
    raise ToastError(
        "ADE20K was not found.",
        f"Neither {home / ADE20K_FOLDER / 'annotations'} nor {home / 'annotations'} exists.",
        f"Download ADEChallengeData2016.zip (MIT, scene parsing) and unpack it in {home} to create "
        f"{home / ADE20K_FOLDER / 'annotations'}, or pass the folder that contains {ADE20K_FOLDER} as --data-dir.",
        code="data.missing-dataset",
    )


def _read_split(root: Path, part: str, classes: int, reduce_zero_label: bool) -> SegmentationSplit:
    images, maps = root / "images" / part, root / "annotations" / part
    pairs = match_images_to_maps(images, maps)
    if not pairs:
        raise ToastError(
            f"{images} contains no images.", what_to_do="Unpack ADEChallengeData2016.zip again.", code="data.no-images"
        )
    return SegmentationSplit(pairs, classes, reduce_zero_label)


def _read_class_names(file: Path) -> tuple[str, ...]:
    """Return the last column of the class table: all synonyms of a class, since two classes begin with "screen"."""
    try:
        rows = [line.split("\t") for line in read_text_file(file).splitlines()[1:] if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ToastError(
            f"Cannot read the class names in {file}.",
            str(error),
            f"Unpack {ADE20K_FOLDER}.zip again.",
            code="data.unreadable-file",
        ) from error
    names = tuple(row[-1].strip() for row in rows)
    if len(names) != CLASS_COUNT:
        raise ToastError(
            f"Expected {CLASS_COUNT} class names in {file}, got {len(names)}.",
            what_to_do=f"Unpack {ADE20K_FOLDER}.zip again.",
            code="data.wrong-class-count",
        )
    return names
