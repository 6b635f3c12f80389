"""NABirds: 555 classes of North American birds with a box and 11 parts per image, in the official layout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.datasets.cub_format import BirdLayout, read_bird_annotations
from toast_cli.data.datasets.fgvc import AnnotatedDataset, FgvcOptions, PublishedDataset, open_published_dataset

NABIRDS = PublishedDataset(
    title="NABirds",
    folders=("nabirds",),
    marker="images.txt",
    archives="nabirds.tar.gz",
    home="https://dl.allaboutbirds.org/nabirds",
    sizes={"official": {"train": 23_929, "test": 24_633}, "json": {"train": 21_536, "val": 2_393, "test": 24_633}},
    classes=555,
    images="images",
)


class NABirdsOptions(FgvcOptions):
    """Options of NABirds: its splits and its masks."""

    name: Literal["nabirds"] = Field("nabirds", description="the data set")
    mask: Literal["box", "parts"] = Field(
        "box", description="the mask of the bird: its bounding box, or discs around its visible parts"
    )


def open_nabirds(options: NABirdsOptions, data_dir: Path | None) -> DataSet:
    """Read the annotation files, without opening any image.

    `classes.txt` lists the whole hierarchy of species. Only the entries that have images are classes.

    Raises:
        ToastError: If the data or an annotation file is missing, or a line is invalid.
    """
    return open_published_dataset(NABIRDS, options, data_dir, _read_annotations)


SOURCE = DataSource(
    NABirdsOptions,
    open_nabirds,
    NABIRDS.needs,
    home=NABIRDS.home,
    layout=(
        "nabirds/\n"
        "  images.txt  classes.txt  image_class_labels.txt  train_test_split.txt  bounding_boxes.txt\n"
        "  images/0295/*.jpg\n"
        "  parts/part_locs.txt  (dataset.mask=parts)"
    ),
)


def _read_annotations(root: Path, options: NABirdsOptions) -> AnnotatedDataset:
    return read_bird_annotations(root, BirdLayout(NABIRDS.archives, numbered=False, every_class=False), options.mask)
