"""PASCAL VOC 2012 segmentation: 20 classes and the background, official layout, with or without augmented list."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.images.files import read_text_file
from toast_cli.data.images.listed_files import require_files
from toast_cli.data.paths import get_data_dir
from toast_cli.data.segmentation.dataset import SegmentationDataOptions, SegmentationSplit, build_official_dataset
from toast_cli.utils.errors import ToastError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOC_FOLDER = "VOCdevkit/VOC2012"
LISTS_FOLDER = "ImageSets/Segmentation"
AUGMENTED_MAPS_FOLDER = "SegmentationClassAug"
AUGMENTED_LISTS = ("trainaug.txt", "train_aug.txt")
VOC_SIZES = (1_464, 1_449)
"""Number of training and validation images in the published lists."""
AUGMENTED_TRAIN_SIZE = 10_582


class VocOptions(SegmentationDataOptions):
    """Options of PASCAL VOC 2012. The official validation list is the test split."""

    name: Literal["voc"] = Field("voc", description="the data set")
    augmented: bool = Field(
        False,
        description=f"train on the augmented list (10,582 images) with the class maps in {AUGMENTED_MAPS_FOLDER}; "
        "false: on the official 1,464 images",
    )


def open_voc(options: VocOptions, data_dir: Path | None) -> DataSet:
    """Read the lists, without opening any image.

    The labels of the official test split are not public. Published results are on the official validation list, so it
    is the test split here. The validation split, which selects the epoch, is held out from the training images.

    Raises:
        ToastError: If the data or an image of a list is missing, or the training list contains test images.
    """
    root = _find_root(get_data_dir(data_dir))
    official = root / LISTS_FOLDER
    if options.augmented:
        listed = next((official / name for name in AUGMENTED_LISTS if (official / name).is_file()), None)
        if listed is None or not (root / AUGMENTED_MAPS_FOLDER).is_dir():
            raise ToastError(
                f"{root} has no augmented training list.",
                f"Expected {official / AUGMENTED_LISTS[0]} and class maps in {root / AUGMENTED_MAPS_FOLDER}.",
                "Add both (from the Semantic Boundaries Dataset), or use dataset.augmented=false.",
                code="data.missing-list",
            )
        train = _read_split(root, listed, AUGMENTED_MAPS_FOLDER)
    else:
        train = _read_split(root, official / "train.txt", "SegmentationClass")
    test = _read_split(root, official / "val.txt", "SegmentationClass")
    tested = {image for image, _ in test.pairs}
    both = sum(image in tested for image, _ in train.pairs)
    if both:
        raise ToastError(
            f"{both:,} training images of {root} are also in the validation list.",
            "A model must not be evaluated on images that it was trained on.",
            "Use the augmented list without the official validation images (trainaug, not trainvalaug).",
            code="data.overlapping-splits",
        )
    published = (AUGMENTED_TRAIN_SIZE if options.augmented else VOC_SIZES[0], VOC_SIZES[1])
    note = "test: VOC's official validation list; the labels of the official test list are not public"
    return build_official_dataset(VOC_CLASSES, train, test, published, options, note)


SOURCE = DataSource(
    VocOptions,
    open_voc,
    f"VOCtrainval_11-May-2012.tar unpacked in the data folder ({VOC_FOLDER}/JPEGImages)",
    "segmentation",
    home="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    layout=(
        "VOCdevkit/VOC2012/\n"
        "  JPEGImages/*.jpg\n"
        "  SegmentationClass/*.png\n"
        "  ImageSets/Segmentation/train.txt  ImageSets/Segmentation/val.txt"
    ),
)


def _find_root(home: Path) -> Path:
    for place in (home / VOC_FOLDER, home / "VOC2012", home):
        if (place / LISTS_FOLDER).is_dir():
            return place
    raise ToastError(
        "PASCAL VOC 2012 was not found.",
        f"Neither {home / VOC_FOLDER / LISTS_FOLDER} nor {home / LISTS_FOLDER} exists.",
        f"Download VOCtrainval_11-May-2012.tar and unpack it in {home} to create {home / VOC_FOLDER / LISTS_FOLDER}, "
        "or pass the folder that contains VOCdevkit as --data-dir.",
        code="data.missing-dataset",
    )


def _read_split(root: Path, listed: Path, maps: str) -> SegmentationSplit:
    """Return the images of a list. A line contains an id or, in augmented lists, the paths of image and class map."""
    try:
        lines = read_text_file(listed).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ToastError(
            f"Cannot read {listed}.", str(error), "Unpack the archive again.", code="data.unreadable-file"
        ) from error
    ids = [Path(line.split()[0]).stem for line in lines if line.strip()]
    pairs = tuple((root / "JPEGImages" / f"{name}.jpg", root / maps / f"{name}.png") for name in ids)
    if not pairs:
        raise ToastError(f"{listed} lists no images.", what_to_do="Unpack the archive again.", code="data.no-images")
    files = [(str(path), path) for pair in pairs for path in pair]
    require_files(files, f"files listed in {listed}", "Unpack the archive again.")
    return SegmentationSplit(pairs, len(VOC_CLASSES))
