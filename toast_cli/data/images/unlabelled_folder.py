"""`images`: all images below a folder, without labels, for pre-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.images.folder_scan import DiskFolder, describe_unread_files
from toast_cli.data.images.image_folder import find_folder
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.split_names import parse_split_name
from toast_cli.data.splits import SplitOptions, make_train_val_splits
from toast_cli.utils.config import LOCAL_PATH
from toast_cli.utils.errors import ToastError

UNLABELLED_CLASSES = ("an image",)
"""The single class of unlabelled images."""


class UnlabelledFolderOptions(SplitOptions):
    """Options of a folder of unlabelled images."""

    name: Literal["images"] = Field("images", description="the data set")
    path: str = Field(
        min_length=1,
        examples=["photographs"],
        json_schema_extra=LOCAL_PATH,
        description="the folder; a relative path is looked up in --data-dir, then in the current folder",
    )


def open_unlabelled_folder(options: UnlabelledFolderOptions, data_dir: Path | None) -> DataSet:
    """Read the file names below a folder, without opening any image.

    Raises:
        ToastError: the folder does not exist or contains no images.
    """
    root = find_folder(options.path, data_dir)
    found = DiskFolder(root).list_files_recursively()
    names = sorted(found.images)
    if not names:
        raise ToastError(f"{root} contains no images.", code="data.no-images")
    made, notes = make_train_val_splits(FileSplit(root, tuple(names), (0,) * len(names)), None, options)
    folders = sorted({name.partition("/")[0] for name in names if "/" in name})
    meanings = {name: meaning for name in folders if (meaning := parse_split_name(name)) is not None}
    splits = {name: meaning.split for name, meaning in meanings.items() if meaning.plain}
    warnings = []
    if len(set(splits.values())) > 1:
        training = next((name for name, split in splits.items() if split == "train"), "FOLDER")
        warnings.append(
            f"{root}: the folders {', '.join(splits)} are read alike, those for evaluation too; to leave them out, use "
            f"images:{options.path}/{training}"
        )
    folder_notes = (
        "Images without labels, for pretuning.target=first-pass.",
        *describe_unread_files(str(root), [found]),
    )
    return DataSet(UNLABELLED_CLASSES, made, (*folder_notes, *notes), tuple(warnings))


SOURCE = DataSource(
    UnlabelledFolderOptions,
    open_unlabelled_folder,
    "every image below a folder, without labels: images:PATH",
    layout=("PATH/**/*.jpg"),
)
