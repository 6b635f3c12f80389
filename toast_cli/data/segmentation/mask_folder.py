"""`masks`: any folder of images beside one of class maps."""

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
    "Expected are PATH/images/*.jpg and PATH/masks/*.png, or the same in train, val and test folders within both."
)


class MaskFolderOptions(SegmentationDataOptions):
    """A folder of images, a folder of class maps, and what their values mean."""

    name: Literal["masks"] = Field("masks", description="the data set")
    path: str = Field(
        min_length=1, description="the folder of both; a relative one is looked up in --data-dir, then in this folder"
    )
    images: str = Field("images", min_length=1, description="the folder of images within it")
    masks: str = Field("masks", min_length=1, description="the folder of class maps within it")
    classes: tuple[str, ...] | None = Field(
        None, description=f"names of the classes, in the order of their values; left out: the lines of {CLASSES_FILE}"
    )
    reduce_zero_label: bool = Field(False, description="the value 0 means no class, and 1 is the first")
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="share of the images held out for test where the folders are not split at all"
    )


def open_mask_folder(options: MaskFolderOptions, data_dir: Path | None) -> DataSet:
    """Read the layout and the file names; no image is opened.

    Raises:
        UsageError: nobody says what the classes are called.
        ToastError: a folder is missing, an image or a class map has no other, or there is nothing to learn from.
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
            f"{images} holds {', '.join(parts)} but no train folder.",
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
    """Folders without train, val and test: test and validation are both made here."""
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
        raise ToastError(f"There is no image in {images}.", what_to_do=EXPECTED_MASK_LAYOUT, code="data.no-images")
    return SegmentationSplit(pairs, classes, options.reduce_zero_label)


def _read_class_names(options: MaskFolderOptions, root: Path) -> tuple[str, ...]:
    """The names as the options or the folder's own list has them."""
    names, where = options.classes, "dataset.classes"
    file = root / CLASSES_FILE
    if names is None:
        if not file.is_file():
            raise UsageError(
                f"What are the classes in {root} called?",
                f"There is no {CLASSES_FILE} in it, and a class map holds numbers alone.",
                f"Write their names into {file}, a line each in the order of their values; or give "
                "dataset.classes='[background, cat, dog]'.",
                code="data.unknown-class-names",
            )
        try:
            text = read_text_file(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ToastError(f"{file} cannot be read.", str(error), code="data.unreadable-file") from error
        names, where = tuple(line.strip() for line in text.splitlines() if line.strip()), str(file)
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise UsageError(f"{where} names '{double[0]}' twice.", code="data.duplicate-class")
    if not 2 <= len(names) <= 255:
        raise UsageError(
            f"{where} names {len(names)} classes.",
            "Two to 255 can be told apart in a class map.",
            code="data.too-few-classes" if len(names) < 2 else "data.too-many-classes",
        )
    return names
