"""CUB-200-2011: 200 bird species with a box, 15 parts and (apart) a segmentation per image, in the official layout."""

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
    """How CUB's images are divided, and what marks the bird in them."""

    name: Literal["cub"] = Field("cub", description="the data set")
    mask: Literal["box", "parts", "segmentation"] = Field(
        "box",
        description="what marks the bird: its bounding box, discs around its visible parts, or its outline "
        "(segmentations.tgz, an archive of its own)",
    )


def open_cub(options: CubOptions, data_dir: Path | None) -> DataSet:
    """Read the annotation files; no image is opened.

    Raises:
        ToastError: the data is not there, or an annotation file is missing or has an odd line.
    """
    return open_published_dataset(CUB, options, data_dir, _read_annotations)


SOURCE = DataSource(CubOptions, open_cub, CUB.needs, home=CUB.home)


def _read_annotations(root: Path, options: CubOptions) -> AnnotatedDataset:
    return read_bird_annotations(root, BirdLayout(CUB.archives), options.mask)
