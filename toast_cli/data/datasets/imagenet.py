"""`imagenet`: ImageNet-1k (ILSVRC 2012) as folders or as the official tar files, which are read without unpacking.

To stream ImageNet, use `shards:` (WebDataset) or `hf:ILSVRC/imagenet-1k dataset.streaming=true`.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.datasets.matlab import flatten_column, read_matlab
from toast_cli.data.images.files import read_text_file
from toast_cli.data.images.folder_scan import DiskFolder, is_image_name
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.paths import get_data_dir
from toast_cli.data.splits import SplitOptions, make_train_val_splits, require_all_classes_in_train
from toast_cli.utils.errors import ToastError

IMAGENET_FOLDERS = ("imagenet", "imagenet-1k", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
VAL_LABELS_FILE, META_FILE = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
IMAGENET_SIZES = (1_281_167, 50_000, 1_000)
"""Published number of training images, validation images and classes."""
WNID_PATTERN = re.compile(r"n\d{8}")
"""Pattern of a class name: the WordNet id of a noun. Sorted ids give the label order of ImageNet models."""


class ImageNetOptions(SplitOptions):
    """Options of ImageNet-1k. Validation uses the official validation images; there is no test split."""

    name: Literal["imagenet"] = Field("imagenet", description="the data set")


def open_imagenet(options: ImageNetOptions, data_dir: Path | None) -> DataSet:
    """List the folders or read the headers of the tar files (about one minute), without opening any image.

    Raises:
        ToastError: If the data is missing or its layout is not supported.
    """
    root = _find_root(get_data_dir(data_dir))
    if (root / "train").is_dir():
        images = DiskFolder(root).list_files_recursively("train").images
        train = _build_labelled_split(root, {name: Path(name).parts[1] for name in images}, "train")
    else:
        train = _read_train_tar(root / TRAIN_TAR)
    classes = train[1]
    val = _read_validation(root, classes)
    require_all_classes_in_train(train[0], classes, str(root))
    notes = ["validation: the official validation images of ImageNet"] if val is not None else []
    sizes = len(train[0]), len(val or ()), len(classes)
    if sizes != IMAGENET_SIZES:
        notes.append(
            f"This copy has {sizes[0]:,} training and {sizes[1]:,} validation images of {sizes[2]:,} classes; "
            f"the published ImageNet-1k has {IMAGENET_SIZES[0]:,} and {IMAGENET_SIZES[1]:,} of {IMAGENET_SIZES[2]:,}."
        )
    made, more = make_train_val_splits(train[0], val, options)
    return DataSet(classes, made, (*notes, *more))


SOURCE = DataSource(
    ImageNetOptions,
    open_imagenet,
    f"imagenet/train/n.../ and imagenet/val/ in the data folder, or {TRAIN_TAR} and {VAL_TAR} without unpacking (and "
    f"{DEVKIT} unpacked in the same folder); to stream it, see shards and hf",
    home="https://image-net.org/challenges/LSVRC/2012",
    layout=(
        "imagenet/\n"
        "  train/n01440764/*.JPEG\n"
        "  val/n01440764/*.JPEG  (or val/*.JPEG with ILSVRC2012_devkit_t12/ in imagenet/)\n"
        "\n"
        "imagenet/\n"
        "  ILSVRC2012_img_train.tar  ILSVRC2012_img_val.tar  ILSVRC2012_devkit_t12/"
    ),
)


def _find_root(home: Path) -> Path:
    for place in (*(home / folder for folder in IMAGENET_FOLDERS), home):
        if (place / "train").is_dir() or (place / TRAIN_TAR).is_file():
            return place
    raise ToastError(
        "ImageNet-1k was not found.",
        f"Neither {home / IMAGENET_FOLDERS[0] / 'train'} nor {home / IMAGENET_FOLDERS[0] / TRAIN_TAR} exists.",
        f"Download it from image-net.org (requires an account) and put the folders, or {TRAIN_TAR} and {VAL_TAR}, into "
        f"{home / IMAGENET_FOLDERS[0]}, or pass the folder that contains it as --data-dir.",
        code="data.missing-dataset",
    )


def _build_labelled_split(
    root: Any, class_of: dict[str, str], what: str, classes: tuple[str, ...] | None = None
) -> tuple[FileSplit, tuple[str, ...]]:
    """Return the images sorted by label, and the classes. Without `classes`, the images define the classes."""
    invalid = sorted({name for name in class_of.values() if not WNID_PATTERN.fullmatch(name)})
    if invalid or not class_of:
        raise ToastError(
            f"{root}, {what}: '{invalid[0]}' is not an ImageNet class."
            if invalid
            else f"{root}, {what}: found no images.",
            "Expected one folder per class, named by its WordNet id, such as n01440764.",
            "For folders with other names, use folder:PATH.",
            code="data.unknown-class" if invalid else "data.no-images",
        )
    known = classes or tuple(sorted(set(class_of.values())))
    unknown = sorted(set(class_of.values()) - set(known))
    if unknown:
        raise ToastError(
            f"{root}, {what}: the class {unknown[0]} has no training images.",
            what_to_do="Download the training images again.",
            code="data.unknown-class",
        )
    label_of = {name: label for label, name in enumerate(known)}
    ordered = sorted((label_of[identifier], name) for name, identifier in class_of.items())
    return FileSplit(root, tuple(name for _, name in ordered), tuple(label for label, _ in ordered)), known


def _read_train_tar(file: Path) -> tuple[FileSplit, tuple[str, ...]]:
    """Index the training tar file, which contains one tar file of images per class."""
    from toast_cli.data.images.archive_index import MAX_MEMBER_BYTES, ArchiveIndex

    members: dict[str, tuple[int, int]] = {}
    try:
        with file.open("rb") as handle, tarfile.open(fileobj=handle, mode="r:") as outer:
            for inner in outer:
                handle.seek(inner.offset_data)
                with tarfile.open(fileobj=handle, mode="r:") as images:
                    folder = Path(inner.name).stem
                    members |= {
                        f"{folder}/{Path(image.name).name}": (image.offset_data, image.size)
                        for image in images
                        if image.isreg() and is_image_name(image.name) and image.size <= MAX_MEMBER_BYTES
                    }
    except (OSError, tarfile.TarError) as error:
        raise ToastError(
            f"Cannot read {file}.",
            f"{type(error).__name__}: {error}",
            "Download it again.",
            code="data.unreadable-archive",
        ) from error
    packed = ArchiveIndex(file, members, frozenset(Path(name).parts[0] for name in members))
    return _build_labelled_split(packed, {name: Path(name).parts[0] for name in members}, "train")


def _read_validation(root: Path, classes: tuple[str, ...]) -> FileSplit | None:
    """Return the validation images: one folder per class, or a single folder with labels from the development kit."""
    from toast_cli.data.images.archive_index import open_archive_index

    if (root / "val").is_dir():
        tree: Any = DiskFolder(root)
        names = tree.list_files_recursively("val").images
        if tree.list_folders("val"):
            return _build_labelled_split(root, {name: Path(name).parts[1] for name in names}, "val", classes)[0]
    elif (root / VAL_TAR).is_file():
        tree = open_archive_index(root / VAL_TAR)
        names = tree.list_files_recursively().images
    else:
        return None
    kit = next((place for place in (root / DEVKIT, root) if (place / META_FILE).is_file()), None)
    if kit is None:
        raise ToastError(
            f"The labels of the validation images of {root} are missing.",
            f"The images are not in class folders, and {root / DEVKIT / META_FILE} does not exist.",
            f"Unpack {DEVKIT}.tar.gz in {root}.",
            code="data.missing-labels",
        )
    wnids = {
        int(each.ILSVRC2012_ID): str(each.WNID)
        for each in flatten_column(read_matlab(kit / META_FILE, "synsets", archive=f"{DEVKIT}.tar.gz")["synsets"])
    }
    try:
        truth = [int(line) for line in read_text_file(kit / VAL_LABELS_FILE).split()]
    except (OSError, ValueError) as error:
        raise ToastError(
            f"Cannot read {kit / VAL_LABELS_FILE}.",
            str(error),
            f"Unpack {DEVKIT}.tar.gz again.",
            code="data.unreadable-file",
        ) from error
    if len(truth) != len(names) or not set(truth) <= set(wnids):
        raise ToastError(
            f"{kit / VAL_LABELS_FILE} has {len(truth):,} labels for the {len(names):,} validation images of {root}.",
            what_to_do=f"Download {VAL_TAR} and {DEVKIT}.tar.gz again.",
            code="data.wrong-label-count",
        )
    class_of = {name: wnids[number] for name, number in zip(sorted(names), truth, strict=True)}
    return _build_labelled_split(tree.root, class_of, "val", classes)[0]
