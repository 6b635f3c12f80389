"""Stanford Cars: 196 makes, models and years with a box per image, in the official layout: a MATLAB development kit."""

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
from toast_cli.data.images.file_split import FileSplit
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
    """How the cars' images are divided; their test split is the official one."""

    name: Literal["cars"] = Field("cars", description="the data set")


def open_cars(options: CarsOptions, data_dir: Path | None) -> DataSet:
    """Read the annotation files; no image is opened. A sample's mask is its bounding box.

    Raises:
        ToastError: the data is not there, the test labels are not, or an annotation is odd.
    """
    return open_published_dataset(CARS, options, data_dir, _read_annotations)


SOURCE = DataSource(CarsOptions, open_cars, CARS.needs, home=CARS.home)


def _read_annotations(root: Path, options: CarsOptions) -> AnnotatedDataset:
    devkit = root / "devkit"
    test = next((file for file in (root / TEST_LABELS_FILE, devkit / TEST_LABELS_FILE) if file.is_file()), None)
    if test is None:
        raise ToastError(
            f"There is no {TEST_LABELS_FILE} in {root}.",
            "The development kit holds the test images' boxes, without their labels.",
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
    """File name, label from 0 and box of one annotation, whose corners count from 1 and are both inside."""
    try:
        name, label = str(entry.fname), int(getattr(entry, "class")) - 1
        left, top, right, low = (float(getattr(entry, corner)) for corner in BOX_CORNER_FIELDS)
        if not 0 <= label < classes:
            raise ValueError(f"class {label + 1} is none of {classes}")
        return name, label, Box(left - 1, top - 1, right - left + 1, low - top + 1)
    except (AttributeError, TypeError, ValueError) as error:
        raise ToastError(
            f"{file}, annotation {number}: {error}.",
            what_to_do=f"Unpack {CARS.archives} anew.",
            code="data.invalid-annotation",
        ) from error
