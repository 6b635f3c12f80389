"""CUB-200-2011: 200 bird species, official layout; each image has a box, 15 parts and, optionally, a segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.datasets.cub_format import BirdLayout, read_bird_annotations
from toast_cli.data.datasets.fgvc import AnnotatedDataset, FgvcOptions, PublishedDataset, open_published_dataset

CUB = PublishedDataset(
    title="CUB-200-2011",
    folders=("CUB_200_2011",),
    marker="images.txt",
    archives="CUB_200_2011.tgz",
    home="https://www.vision.caltech.edu/datasets/cub_200_2011",
    sizes={"official": {"train": 5_994, "test": 5_794}, "json": {"train": 5_394, "val": 600, "test": 5_794}},
    classes=200,
    images="images",
)


class CubOptions(FgvcOptions):
    """Options of CUB-200-2011: its splits and its masks."""

    name: Literal["cub"] = Field("cub", description="the data set")
    mask: Literal["box", "parts", "segmentation"] = Field(
        "box",
        description="the mask of the bird: its bounding box, discs around its visible parts, or its outline "
        "(from a separate archive, segmentations.tgz)",
    )


def open_cub(options: CubOptions, data_dir: Path | None) -> DataSet:
    """Read the annotation files, without opening any image.

    Raises:
        ToastError: If the data or an annotation file is missing, or a line is invalid.
    """
    return open_published_dataset(CUB, options, data_dir, _read_annotations)


SOURCE = DataSource(
    CubOptions,
    open_cub,
    CUB.needs,
    home=CUB.home,
    layout=(
        "CUB_200_2011/\n"
        "  images.txt  classes.txt  image_class_labels.txt  train_test_split.txt  bounding_boxes.txt\n"
        "  images/001.Black_footed_Albatross/*.jpg\n"
        "  parts/part_locs.txt  (dataset.mask=parts)\n"
        "  segmentations/       (dataset.mask=segmentation)"
    ),
)


def _read_annotations(root: Path, options: CubOptions) -> AnnotatedDataset:
    return read_bird_annotations(root, BirdLayout(CUB.archives), options.mask)
