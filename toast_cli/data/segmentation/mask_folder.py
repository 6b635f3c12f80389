"""`masks`: a folder of images and a folder of class maps."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.class_map import normalize_class_name
from toast_cli.data.images.files import read_text_file
from toast_cli.data.images.folder_scan import DiskFolder, is_image_name, summarize_file_names
from toast_cli.data.images.image_folder import find_folder
from toast_cli.data.segmentation.dataset import (
    SegmentationDataOptions,
    SegmentationSplit,
    build_segmentation_dataset,
    hold_out_validation,
    match_images_to_maps,
)
from toast_cli.data.split_names import (
    SPLITS,
    SplitAssignment,
    SplitNames,
    assign_splits,
    parse_split_name,
    require_known_names,
)
from toast_cli.data.splits import compute_split_hash, hold_out
from toast_cli.utils.config import LOCAL_PATH
from toast_cli.utils.errors import ToastError, UsageError

CLASSES_FILE = "classes.txt"
EXPECTED_MASK_LAYOUT = (
    "Expected PATH/images/*.jpg and PATH/masks/*.png, or the same with train, val and test folders in both."
)


class MaskFolderOptions(SegmentationDataOptions):
    """Options of a folder of images and class maps."""

    name: Literal["masks"] = Field("masks", description="the data set")
    path: str = Field(
        min_length=1,
        examples=["scenes"],
        json_schema_extra=LOCAL_PATH,
        description="the folder of both; a relative path is looked up in --data-dir, then here",
    )
    images: str = Field("images", min_length=1, examples=["pictures"], description="the folder of images in it")
    masks: str = Field("masks", min_length=1, examples=["labels"], description="the folder of class maps in it")
    classes: tuple[str, ...] | None = Field(
        None,
        examples=[["background", "road"]],
        description=f"names of the classes, in the order of their values; default: the lines of {CLASSES_FILE}",
    )
    reduce_zero_label: bool = Field(False, description="the value 0 means no class, and 1 is the first class")
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="fraction of the images held out for test if the folders have no splits"
    )
    split_names: SplitNames


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
    assigned = [_find_split_folders(options, folder) for folder in (images, maps)]
    require_known_names(
        options.split_names, [*DiskFolder(images).list_folders(), *DiskFolder(maps).list_folders()], str(root)
    )
    parts = [part for part in SPLITS if any(part in each.names for each in assigned if each)]
    if not parts:
        folders = DiskFolder(images).list_folders()
        grouped = [f"{images}: its folders are read together: {', '.join(folders)}"] if folders else []
        everything = _read_split(options, images, maps, len(classes))
        return _build_unsplit_dataset(options, classes, everything, grouped)
    if "train" not in parts:
        raise ToastError(
            f"{images} has {', '.join(parts)} but no train folder.",
            what_to_do=f"{EXPECTED_MASK_LAYOUT} Other names: dataset.split_names={{NAME: train}}.",
            code="data.no-train-split",
        )
    of_images, of_maps = ({} if each is None else each.names for each in assigned)
    unlabelled = [part for part in parts if part == "test" and part not in of_maps]
    splits = {
        part: _read_split(options, images / of_images.get(part, part), maps / of_maps.get(part, part), len(classes))
        for part in parts
        if part not in unlabelled
    }
    notes = list(dict.fromkeys(note for each in assigned if each for note in each.describe(str(root), "folder")))
    notes += [f"{part}: not read, its images have no class maps" for part in unlabelled]
    loose = [name for folder in (images, maps) for name in DiskFolder(folder).list_files() if is_image_name(name)]
    if loose:
        notes.append(f"{root}: not read, not in a split folder: {summarize_file_names(loose)}")
    if "val" not in splits:
        made, note = hold_out_validation(splits["train"], options)
        splits |= made
        notes.append(note)
    if "test" not in splits:
        notes.append(f"test: {root} has no test split, so none is reported")
    return build_segmentation_dataset(classes, splits, notes)


SOURCE = DataSource(
    MaskFolderOptions,
    open_mask_folder,
    "a folder with images/ and masks/ in it: masks:PATH",
    "segmentation",
    layout=(
        "PATH/\n"
        "  classes.txt              (optional: a class per line)\n"
        "  images/train/*.jpg       images/val/*.jpg       images/test/*.jpg\n"
        "  masks/train/*.png        masks/val/*.png        masks/test/*.png\n"
        "\n"
        "PATH/\n"
        "  images/*.jpg  masks/*.png   (validation and test images are held out)"
    ),
)


def _find_split_folders(options: MaskFolderOptions, folder: Path) -> SplitAssignment | None:
    """Return the folders of train, val and test in a folder; None if its folders are not splits.

    Raises:
        ToastError: two folders mean the same split, or the meaning of a folder is not clear.
    """
    names = DiskFolder(folder).list_folders()
    given = {name: split for name, split in options.split_names.items() if name in names}
    meanings = [meaning for meaning in map(parse_split_name, names) if meaning is not None]
    is_split = any(meaning.plain for meaning in meanings) or 0 < len(meanings) == len(names)
    return assign_splits(names, given, str(folder)) if given or is_split else None


def _build_unsplit_dataset(
    options: MaskFolderOptions, classes: tuple[str, ...], everything: SegmentationSplit, notes: list[str]
) -> DataSet:
    """Build the data set of folders without splits, by holding out test and validation."""
    names = everything.names
    kept, held = hold_out(names, [0] * len(names), options.test_fraction, options.split_seed, leave=2)
    splits, note = hold_out_validation(everything.take(kept), options)
    notes.append(note)
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
    names = tuple(map(normalize_class_name, names))
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
