"""Stanford Cars: 196 classes (make, model, year) with a bounding box per image, in the official MATLAB layout."""

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
from toast_cli.data.images.object_masks import Box
from toast_cli.utils.errors import ToastError

CARS = PublishedDataset(
    title="Stanford Cars",
    folders=("stanford_cars", "StanfordCars", "Stanford-cars", "stanford-cars"),
    marker="devkit/cars_meta.mat",
    archives="cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat",
    home="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
    sizes={"official": {"train": 8_144, "test": 8_041}, "json": {"train": 7_329, "val": 815, "test": 8_041}},
    classes=196,
)
TEST_LABELS_FILE = "cars_test_annos_withlabels.mat"
BOX_CORNER_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


class CarsOptions(FgvcOptions):
    """Options of Stanford Cars. The test split is the official one."""

    name: Literal["cars"] = Field("cars", description="the data set")


def open_cars(options: CarsOptions, data_dir: Path | None) -> DataSet:
    """Read the annotation files, without opening any image. The mask of a sample is its bounding box.

    Raises:
        ToastError: If the data or the test labels are missing, or an annotation is invalid.
    """
    return open_published_dataset(CARS, options, data_dir, _read_annotations)


SOURCE = DataSource(
    CarsOptions,
    open_cars,
    CARS.needs,
    home=CARS.home,
    layout=(
        "stanford_cars/\n"
        "  cars_train/*.jpg  cars_test/*.jpg\n"
        "  devkit/cars_meta.mat  devkit/cars_train_annos.mat\n"
        "  cars_test_annos_withlabels.mat"
    ),
)


def _read_annotations(root: Path, options: CarsOptions) -> AnnotatedDataset:
    devkit = root / "devkit"
    test = next((file for file in (root / TEST_LABELS_FILE, devkit / TEST_LABELS_FILE) if file.is_file()), None)
    if test is None:
        raise ToastError(
            f"{root} contains no {TEST_LABELS_FILE}.",
            "The development kit contains the boxes of the test images, but not their labels.",
            f"Download it from {CARS.home} into {root}.",
            code="data.missing-labels",
        )
    names, labels, boxes, parts = [], [], [], []
    classes = tuple(map(str, flatten_column(_read_variable(root / CARS.marker, "class_names"))))
    for part, file in (("train", devkit / "cars_train_annos.mat"), ("test", test)):
        for number, entry in enumerate(flatten_column(_read_variable(file, "annotations")), start=1):
            name, label, box = _parse_entry(file, number, entry, len(classes))
            names.append(f"cars_{part}/{name}")
            labels.append(label)
            boxes.append(box)
            parts.append(part)
    everything = FileSplit(root, tuple(names), tuple(labels), tuple(boxes))
    return AnnotatedDataset(classes, group_by_split(everything, parts))


def _read_variable(file: Path, variable: str) -> Any:
    return read_matlab(file, variable, archive=CARS.archives)[variable]


def _parse_entry(file: Path, number: int, entry: Any, classes: int) -> tuple[str, int, Box]:
    """Return the file name, the label (from 0) and the box of an annotation.

    In the file, coordinates start at 1 and both corners belong to the box.
    """
    try:
        name, label = str(entry.fname), int(getattr(entry, "class")) - 1
        left, top, right, low = (float(getattr(entry, corner)) for corner in BOX_CORNER_FIELDS)
        if not 0 <= label < classes:
            raise ValueError(f"class {label + 1} is not between 1 and {classes}")
        return name, label, Box(left - 1, top - 1, right - left + 1, low - top + 1)
    except (AttributeError, TypeError, ValueError) as error:
        raise ToastError(
            f"{file}, annotation {number}: {error}.",
            what_to_do=f"Unpack {CARS.archives} again.",
            code="data.invalid-annotation",
        ) from error
