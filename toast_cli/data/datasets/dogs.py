"""Stanford Dogs: 120 breeds with a box around every dog, official layout: lists in MATLAB files, boxes in XML."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.datasets.fgvc import AnnotatedDataset, FgvcOptions, PublishedDataset, open_published_dataset
from toast_cli.data.datasets.matlab import flatten_column, read_matlab
from toast_cli.data.images.files import open_file
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.images.object_masks import Box, BoxFile
from toast_cli.utils.errors import ToastError

DOGS = PublishedDataset(
    title="Stanford Dogs",
    folders=("StanfordDogs", "Stanford-dogs", "stanford_dogs", "stanford-dogs"),
    marker="train_list.mat",
    archives="images.tar, annotation.tar and lists.tar",
    home="http://vision.stanford.edu/aditya86/ImageNetDogs",
    sizes={"official": {"train": 12_000, "test": 8_580}, "json": {"train": 10_800, "val": 1_200, "test": 8_580}},
    classes=120,
    images="Images",
)


class DogsOptions(FgvcOptions):
    """Options of Stanford Dogs. The test split is the official one."""

    name: Literal["dogs"] = Field("dogs", description="the data set")


def open_dogs(options: DogsOptions, data_dir: Path | None) -> DataSet:
    """Read the lists, without opening any image.

    If the folder `Annotation` exists, the mask of a sample is the union of its dogs' boxes.

    Raises:
        ToastError: If the data is missing, or the labels in the lists contradict the folders.
    """
    return open_published_dataset(DOGS, options, data_dir, _read_annotations)


SOURCE = DataSource(
    DogsOptions,
    open_dogs,
    DOGS.needs,
    home=DOGS.home,
    layout=(
        "StanfordDogs/\n"
        "  train_list.mat  test_list.mat\n"
        "  Images/n02085620-Chihuahua/*.jpg\n"
        "  Annotation/n02085620-Chihuahua/*  (boxes)"
    ),
)


def _read_annotations(root: Path, options: DogsOptions) -> AnnotatedDataset:
    names, ids = {}, {}
    for part in ("train", "test"):
        file = root / f"{part}_list.mat"
        variables = read_matlab(file, "file_list", "labels", archive=DOGS.archives)
        names[part], ids[part] = (
            list(map(str, flatten_column(variables["file_list"]))),
            list(map(int, flatten_column(variables["labels"]))),
        )
        if len(names[part]) != len(ids[part]):
            raise ToastError(
                f"{file} lists {len(names[part]):,} files and {len(ids[part]):,} labels.",
                what_to_do=f"Unpack {DOGS.archives} again.",
                code="data.wrong-label-count",
            )
    breeds: dict[int, str] = {}
    for part in names:
        for name, identifier in zip(names[part], ids[part], strict=True):
            if breeds.setdefault(identifier, name.partition("/")[0]) != name.partition("/")[0]:
                raise ToastError(
                    f"{root / f'{part}_list.mat'}: label {identifier} stands for both {breeds[identifier]} and {name}.",
                    what_to_do=f"Unpack {DOGS.archives} again.",
                    code="data.invalid-annotation",
                )
    label_of = {identifier: label for label, identifier in enumerate(sorted(breeds))}
    boxed = (root / "Annotation").is_dir()
    splits = {
        part: FileSplit(
            root / DOGS.images,
            tuple(names[part]),
            tuple(label_of[identifier] for identifier in ids[part]),
            tuple(BoxFile(root / "Annotation" / name.rpartition(".")[0], read_voc_boxes) for name in names[part])
            if boxed
            else None,
        )
        for part in names
    }
    notes = () if boxed else (f"no masks: unpack annotation.tar in {root} to get the boxes of the dogs",)
    return AnnotatedDataset(tuple(breeds[identifier] for identifier in label_of), splits, notes)


def read_voc_boxes(file: Path) -> tuple[Box, ...]:
    """Return the boxes of an annotation file in the XML format of PASCAL VOC.

    In the file, coordinates start at 1 and both corners belong to the box.

    Raises:
        ToastError: If the file cannot be read or contains no box.
    """
    try:
        with open_file(file) as stream:
            root = ElementTree.fromstring(stream.read())
        corners = [
            [float(box.findtext(side) or "nan") for side in ("xmin", "ymin", "xmax", "ymax")]
            for box in root.iter("bndbox")
        ]
        boxes = tuple(Box(left - 1, top - 1, right - left + 1, low - top + 1) for left, top, right, low in corners)
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise ToastError(
            f"Cannot read the annotation {file}.",
            str(error),
            "Unpack annotation.tar again.",
            code="data.unreadable-file",
        ) from error
    if not boxes:
        raise ToastError(
            f"The annotation {file} contains no box.",
            what_to_do="Unpack annotation.tar again.",
            code="data.invalid-annotation",
        )
    return boxes
