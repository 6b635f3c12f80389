"""ADE20K as of the scene parsing challenge: 150 classes, in the official layout of `ADEChallengeData2016`."""

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
"""Training and validation images of the published data set."""


class Ade20kOptions(SegmentationDataOptions):
    """What of the class maps counts; the official validation split is the test."""

    name: Literal["ade20k"] = Field("ade20k", description="the data set")
    reduce_zero_label: bool = Field(
        True, description="0 ('other') is no class, as everybody reports; false: it is the first of 151"
    )


def open_ade20k(options: Ade20kOptions, data_dir: Path | None) -> DataSet:
    """Read the class names and the file names; no image is opened.

    The labels of the challenge's own test are not public: its validation split is what everybody reports, and the test
    here. Validation, which chooses the epoch, is held out of train.

    Raises:
        ToastError: the data is not there, an image or a class map has no other, or the classes have no names.
    """
    root = _find_root(get_data_dir(data_dir))
    classes = _read_class_names(root / CLASS_TABLE)
    if not options.reduce_zero_label:
        classes = (OTHER_CLASS, *classes)
    train, test = (
        _read_split(root, part, len(classes), options.reduce_zero_label) for part in ("training", "validation")
    )
    note = "test: ADE20K's official validation split, whose labels are public"
    return build_official_dataset(classes, train, test, ADE20K_SIZES, options, note)


SOURCE = DataSource(
    Ade20kOptions,
    open_ade20k,
    f"ADEChallengeData2016.zip unpacked in the data folder ({ADE20K_FOLDER}/images)",
    "segmentation",
    home="http://sceneparsing.csail.mit.edu",
)


def _find_root(home: Path) -> Path:
    for place in (home / ADE20K_FOLDER, home):
        if (place / "annotations").is_dir():
            return place
    raise ToastError(
        "ADE20K was not found.",
        f"Neither {home / ADE20K_FOLDER / 'annotations'} nor {home / 'annotations'} exists.",
        f"Download ADEChallengeData2016.zip (MIT, scene parsing) and unpack it in {home}, so that "
        f"{home / ADE20K_FOLDER / 'annotations'} exists; or name the folder that holds "
        f"{ADE20K_FOLDER} with --data-dir.",
        code="data.missing-dataset",
    )


def _read_split(root: Path, part: str, classes: int, reduce_zero_label: bool) -> SegmentationSplit:
    images, maps = root / "images" / part, root / "annotations" / part
    pairs = match_images_to_maps(images, maps)
    if not pairs:
        raise ToastError(
            f"There is no image in {images}.", what_to_do="Unpack ADEChallengeData2016.zip anew.", code="data.no-images"
        )
    return SegmentationSplit(pairs, classes, reduce_zero_label)


def _read_class_names(file: Path) -> tuple[str, ...]:
    """The last column of the table of classes, a class a line after its heading, as long as it is: "screen" is two."""
    try:
        rows = [line.split("\t") for line in read_text_file(file).splitlines()[1:] if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ToastError(
            f"{file} cannot be read.",
            str(error),
            f"It names the classes; unpack it from {ADE20K_FOLDER}.zip.",
            code="data.unreadable-file",
        ) from error
    names = tuple(row[-1].strip() for row in rows)
    if len(names) != CLASS_COUNT:
        raise ToastError(
            f"{file} names {len(names)} classes, not {CLASS_COUNT}.",
            what_to_do=f"Unpack {ADE20K_FOLDER}.zip anew.",
            code="data.wrong-class-count",
        )
    return names
