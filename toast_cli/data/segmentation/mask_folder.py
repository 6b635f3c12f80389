"""`masks`: a folder of images and a folder of class maps."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.images.files import read_text_file
from toast_cli.data.images.image_folder import find_folder
from toast_cli.data.segmentation.dataset import (
    SegmentationDataOptions,
    SegmentationSplit,
    build_segmentation_dataset,
    hold_out_validation,
    match_images_to_maps,
)
from toast_cli.data.splits import compute_split_hash, hold_out
from toast_cli.utils.errors import ToastError, UsageError

SPLIT_FOLDERS = ("train", "val", "test")
CLASSES_FILE = "classes.txt"
EXPECTED_MASK_LAYOUT = (
    "Expected PATH/images/*.jpg and PATH/masks/*.png, or the same with train, val and test folders in both."
)


class MaskFolderOptions(SegmentationDataOptions):
    """Options of a folder of images and class maps."""

    name: Literal["masks"] = Field("masks", description="the data set")
    path: str = Field(
        min_length=1, description="the folder of both; a relative path is looked up in --data-dir, then here"
    )
    images: str = Field("images", min_length=1, description="the folder of images in it")
    masks: str = Field("masks", min_length=1, description="the folder of class maps in it")
    classes: tuple[str, ...] | None = Field(
        None, description=f"names of the classes, in the order of their values; default: the lines of {CLASSES_FILE}"
    )
    reduce_zero_label: bool = Field(False, description="the value 0 means no class, and 1 is the first class")
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="fraction of the images held out for test if the folders have no splits"
    )


def open_mask_folder(options: MaskFolderOptions, data_dir: Path | None) -> DataSet:
    """Read the layout and the file names, without opening any image.

    Raises:
        UsageError: the names of the classes are missing or invalid.
        ToastError: a folder is missing or contains no images, or an image or a class map has no counterpart.
    """
    root = find_folder(options.path, data_dir)
    classes = _read_class_names(options, root)
    images, maps = root / options.images, root / options.masks
    for folder in (images, maps):
        if not folder.is_dir():
            raise ToastError(
                f"There is no folder {folder}.", what_to_do=EXPECTED_MASK_LAYOUT, code="data.missing-folder"
            )
    parts = [name for name in SPLIT_FOLDERS if (images / name).is_dir() or (maps / name).is_dir()]
    if not parts:
        return _build_unsplit_dataset(options, classes, _read_split(options, images, maps, len(classes)))
    if "train" not in parts:
        raise ToastError(
            f"{images} has {', '.join(parts)} but no train folder.",
            what_to_do=EXPECTED_MASK_LAYOUT,
            code="data.no-train-split",
        )
    splits = {name: _read_split(options, images / name, maps / name, len(classes)) for name in parts}
    notes = []
    if "val" not in splits:
        made, note = hold_out_validation(splits["train"], options)
        splits |= made
        notes.append(note)
    if "test" not in splits:
        notes.append(f"test: {root} has no test split, so none is reported")
    return build_segmentation_dataset(classes, splits, notes)


SOURCE = DataSource(
    MaskFolderOptions, open_mask_folder, "a folder with images/ and masks/ in it: masks:PATH", "segmentation"
)


def _build_unsplit_dataset(
    options: MaskFolderOptions, classes: tuple[str, ...], everything: SegmentationSplit
) -> DataSet:
    """Build the data set of folders without splits, by holding out test and validation."""
    names = everything.names
    kept, held = hold_out(names, [0] * len(names), options.test_fraction, options.split_seed, leave=2)
    splits, note = hold_out_validation(everything.take(kept), options)
    notes = [note]
    if held:
        splits["test"] = everything.take(held)
        digest = compute_split_hash([names[i] for i in held], [0] * len(held))
        notes.append(
            f"test: {100 * options.test_fraction:g}% of all images held out ({len(held):,} images), "
            f"seed {options.split_seed}, split {digest}"
        )
    return build_segmentation_dataset(classes, splits, notes)


def _read_split(options: MaskFolderOptions, images: Path, maps: Path, classes: int) -> SegmentationSplit:
    for folder in (images, maps):
        if not folder.is_dir():
            raise ToastError(
                f"There is no folder {folder}.", what_to_do=EXPECTED_MASK_LAYOUT, code="data.missing-folder"
            )
    pairs = match_images_to_maps(images, maps)
    if not pairs:
        raise ToastError(f"{images} contains no images.", what_to_do=EXPECTED_MASK_LAYOUT, code="data.no-images")
    return SegmentationSplit(pairs, classes, options.reduce_zero_label)


def _read_class_names(options: MaskFolderOptions, root: Path) -> tuple[str, ...]:
    """Return the names of the classes, from the options or from the file in the folder."""
    names, where = options.classes, "dataset.classes"
    file = root / CLASSES_FILE
    if names is None:
        if not file.is_file():
            raise UsageError(
                f"The names of the classes in {root} are unknown.",
                f"It has no {CLASSES_FILE}, and class maps store only numbers.",
                f"Write the names to {file}, one per line in the order of their values, or set "
                "dataset.classes='[background, cat, dog]'.",
                code="data.unknown-class-names",
            )
        try:
            text = read_text_file(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ToastError(f"Cannot read {file}.", str(error), code="data.unreadable-file") from error
        names, where = tuple(line.strip() for line in text.splitlines() if line.strip()), str(file)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"{where} lists '{repeated[0]}' more than once.", code="data.duplicate-class")
    if not 2 <= len(names) <= 255:
        raise UsageError(
            f"{where} lists {len(names)} classes.",
            "A class map supports 2 to 255 classes.",
            code="data.too-few-classes" if len(names) < 2 else "data.too-many-classes",
        )
    return names
