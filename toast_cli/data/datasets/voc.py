"""PASCAL VOC 2012, segmentation: 20 classes and the background, in the official layout, augmented or not."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.images.files import read_text_file, require_files
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
"""Training and validation images of the published lists."""
AUGMENTED_TRAIN_SIZE = 10_582


class VocOptions(SegmentationDataOptions):
    """Which training list; the official validation list is the test."""

    name: Literal["voc"] = Field("voc", description="the data set")
    augmented: bool = Field(
        False,
        description=f"train on the augmented list (10,582 images), whose class maps lie in {AUGMENTED_MAPS_FOLDER}; "
        "false: the official 1,464",
    )


def open_voc(options: VocOptions, data_dir: Path | None) -> DataSet:
    """Read the lists; no image is opened.

    The labels of VOC's own test are not public: its validation list is what everybody reports, and the test here.
    Validation, which chooses the epoch, is held out of train.

    Raises:
        ToastError: the data is not there, or a list names an image that is not.
    """
    root = _find_root(get_data_dir(data_dir))
    official = root / LISTS_FOLDER
    if options.augmented:
        listed = next((official / name for name in AUGMENTED_LISTS if (official / name).is_file()), None)
        if listed is None or not (root / AUGMENTED_MAPS_FOLDER).is_dir():
            raise ToastError(
                f"There is no augmented list in {root}.",
                f"Wanted are {official / AUGMENTED_LISTS[0]} and the class maps in {root / AUGMENTED_MAPS_FOLDER}.",
                "Put both there (they come from the Semantic Boundaries Dataset), or use dataset.augmented=false.",
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
            f"{both:,} training images of {root} are in the validation list too.",
            "A model must not be tested on what it was trained on.",
            "Take the augmented list without the official validation images (trainaug, not trainvalaug).",
            code="data.overlapping-splits",
        )
    published = (AUGMENTED_TRAIN_SIZE if options.augmented else VOC_SIZES[0], VOC_SIZES[1])
    note = "test: VOC's official validation list, whose labels are public"
    return build_official_dataset(VOC_CLASSES, train, test, published, options, note)


SOURCE = DataSource(
    VocOptions,
    open_voc,
    f"VOCtrainval_11-May-2012.tar unpacked in the data folder ({VOC_FOLDER}/JPEGImages)",
    "segmentation",
    home="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
)


def _find_root(home: Path) -> Path:
    for place in (home / VOC_FOLDER, home / "VOC2012", home):
        if (place / LISTS_FOLDER).is_dir():
            return place
    raise ToastError(
        "PASCAL VOC 2012 was not found.",
        f"Neither {home / VOC_FOLDER / LISTS_FOLDER} nor {home / LISTS_FOLDER} exists.",
        f"Download VOCtrainval_11-May-2012.tar and unpack it in {home}, so that {home / VOC_FOLDER / LISTS_FOLDER} "
        "exists; or name the folder that holds VOCdevkit with --data-dir.",
        code="data.missing-dataset",
    )


def _read_split(root: Path, listed: Path, maps: str) -> SegmentationSplit:
    """The images that a list names, one a line: by id, or (augmented lists) as a path to image and class map."""
    try:
        lines = read_text_file(listed).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ToastError(
            f"{listed} cannot be read.", str(error), "Unpack the archive anew.", code="data.unreadable-file"
        ) from error
    ids = [Path(line.split()[0]).stem for line in lines if line.strip()]
    pairs = tuple((root / "JPEGImages" / f"{name}.jpg", root / maps / f"{name}.png") for name in ids)
    if not pairs:
        raise ToastError(f"{listed} names no image.", what_to_do="Unpack the archive anew.", code="data.no-images")
    files = [(str(path), path) for pair in pairs for path in pair]
    require_files(files, f"files that {listed} names", "Unpack the archive anew.")
    return SegmentationSplit(pairs, len(VOC_CLASSES))
