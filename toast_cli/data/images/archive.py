"""`archive`: a folder of images packed in one zip or tar file, read without unpacking."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.class_map import read_class_file
from toast_cli.data.images.image_folder import open_class_folders
from toast_cli.data.paths import find_file
from toast_cli.data.split_names import parse_split_name
from toast_cli.data.splits import NamedSplitsOptions

if TYPE_CHECKING:
    from toast_cli.data.images.archive_index import ArchiveIndex


from toast_cli.utils.config import LOCAL_PATH


class ArchiveOptions(NamedSplitsOptions):
    """Options of an archive of images."""

    name: Literal["archive"] = Field("archive", description="the data set")
    path: str = Field(
        min_length=1,
        examples=["photographs.zip"],
        json_schema_extra=LOCAL_PATH,
        description="a .zip or .tar file; a relative path is looked up in --data-dir, then in the current folder",
    )


def open_archive(options: ArchiveOptions, data_dir: Path | None) -> DataSet:
    """Open an archive with one of the layouts of `folder`. Read only its index; unpack nothing and open no image.

    Raises:
        ToastError: the file does not exist, is not a readable archive, or has an unexpected layout.
    """
    from toast_cli.data.images.archive_index import open_archive_index

    packed = open_archive_index(find_file(options.path, data_dir, "archive:FILE"))
    top = _find_top_folder(packed)
    data = open_class_folders(
        options, packed.get_subfolder(top) if top else packed, read_class_file(options.class_file, data_dir)
    )
    return replace(data, notes=(*packed.notes, *data.notes))


SOURCE = DataSource(
    ArchiveOptions,
    open_archive,
    "a zip or uncompressed tar of a folder per class: archive:FILE",
    layout=(
        "FILE.zip or FILE.tar\n"
        "  train/CLASS/*.jpg  val/CLASS/*.jpg  test/CLASS/*.jpg\n"
        "\n"
        "FILE.zip or FILE.tar\n"
        "  CLASS/*.jpg"
    ),
)


def _find_top_folder(packed: ArchiveIndex) -> str:
    """Return the path of the innermost folder that contains everything; most archives have one."""
    top = ""
    while True:
        folders = packed.list_folders(top)
        inner = f"{top}/{folders[0]}" if top and folders else "".join(folders[:1])
        if len(folders) != 1 or _names_split(folders[0]) or not packed.list_folders(inner):
            return top
        top = inner


def _names_split(name: str) -> bool:
    meaning = parse_split_name(name)
    return meaning is not None and meaning.plain
