"""Stanford Dogs: 120 breeds with a box around every dog, in the official layout: MATLAB lists, boxes in XML."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.datasets.fgvc import AnnotatedDataset, FgvcOptions, PublishedDataset, open_published_dataset
from toast_cli.data.datasets.matlab import flatten_column, read_matlab
from toast_cli.data.images.file_split import FileSplit
from toast_cli.data.images.files import open_file
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
    """How the dogs' images are divided; their test split is the official one."""

    name: Literal["dogs"] = Field("dogs", description="the data set")


def open_dogs(options: DogsOptions, data_dir: Path | None) -> DataSet:
    """Read the lists; no image is opened. A sample's mask is all its dogs' boxes, where `Annotation` is unpacked.

    Raises:
        ToastError: the data is not there, or the lists and folders do not agree.
    """
    return open_published_dataset(DOGS, options, data_dir, _read_annotations)


SOURCE = DataSource(DogsOptions, open_dogs, DOGS.needs, home=DOGS.home)


def _read_annotations(root: Path, options: DogsOptions) -> AnnotatedDataset:
    names, ids = {}, {}
    for part in ("train", "test"):
        file = root / f"{part}_list.mat"
        found = read_matlab(file, "file_list", "labels", archive=DOGS.archives)
        names[part], ids[part] = (
            list(map(str, flatten_column(found["file_list"]))),
            list(map(int, flatten_column(found["labels"]))),
        )
        if len(names[part]) != len(ids[part]):
            raise ToastError(
                f"{file} lists {len(names[part]):,} files and {len(ids[part]):,} labels.",
                what_to_do=f"Unpack {DOGS.archives} anew.",
                code="data.wrong-label-count",
            )
    breeds: dict[int, str] = {}
    for part in names:
        for name, identifier in zip(names[part], ids[part], strict=True):
            if breeds.setdefault(identifier, name.partition("/")[0]) != name.partition("/")[0]:
                raise ToastError(
                    f"{root / f'{part}_list.mat'}: label {identifier} is of {breeds[identifier]} and of {name}.",
                    what_to_do=f"Unpack {DOGS.archives} anew.",
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
    notes = () if boxed else (f"no masks: unpack annotation.tar in {root} for the dogs' boxes",)
    return AnnotatedDataset(tuple(breeds[identifier] for identifier in label_of), splits, notes)


def read_voc_boxes(file: Path) -> tuple[Box, ...]:
    """The boxes of an annotation in PASCAL VOC's XML: corners counted from 1, both of them inside.

    Raises:
        ToastError: it cannot be read, or holds no box.
    """
    try:
        with open_file(file) as stream:
            found = ElementTree.fromstring(stream.read())
        corners = [
            [float(box.findtext(side) or "nan") for side in ("xmin", "ymin", "xmax", "ymax")]
            for box in found.iter("bndbox")
        ]
        boxes = tuple(Box(left - 1, top - 1, right - left + 1, low - top + 1) for left, top, right, low in corners)
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise ToastError(
            f"The annotation {file} cannot be read.",
            str(error),
            "Unpack annotation.tar anew.",
            code="data.unreadable-file",
        ) from error
    if not boxes:
        raise ToastError(
            f"The annotation {file} holds no box.",
            what_to_do="Unpack annotation.tar anew.",
            code="data.invalid-annotation",
        )
    return boxes
