"""A quick check that image files can be opened, before a run: pixels are decoded only where a file seems cut off."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from toast_cli.data.base import Split
from toast_cli.data.images.decode import check_image_file
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.segmentation.dataset import SegmentationSplit
from toast_cli.utils.errors import ToastError

MAX_SECONDS = 20.0
"""Time for the check; files that are left then are not checked."""
MAX_THREADS = 8
WINDOW = 256
"""Number of files that are checked between two looks at the clock."""


@dataclass
class FileCheck:
    """The result of a check of files.

    Attributes:
        checked: number of files that were opened.
        total: number of files of the splits.
        unreadable: the error of each file that cannot be read, by split and name.
    """

    checked: int = 0
    total: int = 0
    unreadable: dict[tuple[str, str], ToastError] = field(default_factory=dict)


@dataclass(frozen=True)
class _ListedFile:
    part: str
    name: str
    file: Any
    white: int | None
    is_map: bool = False


def check_files(
    splits: Mapping[str, Split], process: int = 0, processes: int = 1, seconds: float = MAX_SECONDS
) -> FileCheck:
    """Check that the image files of some splits can be opened, for at most some seconds.

    An image must have a header that Pillow can read. One whose end is missing is decoded. Of class maps, only existence
    and size are checked. With several processes, each checks its share of the files.
    """
    until = time.monotonic() + seconds
    files = [file for part, split in splits.items() for file in _list_files(part, split)]
    own = iter(_spread(files[process::processes]))
    check = FileCheck(total=len(files))
    with ThreadPoolExecutor(min(MAX_THREADS, 2 * (os.cpu_count() or 1))) as pool:
        while (window := list(islice(own, WINDOW))) and time.monotonic() < until:
            for file, error in zip(window, pool.map(_find_error, window), strict=True):
                check.checked += 1
                if error is not None:
                    check.unreadable[file.part, file.name] = error
    return check


def _list_files(part: str, split: Any) -> Iterator[_ListedFile]:
    if isinstance(split, FileSplit):
        for name in split.names:
            yield _ListedFile(part, name, split.root / name, split.white)
    elif isinstance(split, SegmentationSplit):
        for image, map_ in split.pairs:
            yield _ListedFile(part, image.name, image, split.white)
            yield _ListedFile(part, map_.name, map_, None, is_map=True)


def _spread(files: list[_ListedFile], stride: int = 61) -> Iterator[_ListedFile]:
    """Yield the files in an order that covers all of them evenly, whenever it ends."""
    for first in range(stride):
        yield from files[first::stride]


def _find_error(listed: _ListedFile) -> ToastError | None:
    try:
        if listed.is_map:
            _require_content(listed.file)
        else:
            check_image_file(listed.file, listed.white)
    except ToastError as error:
        return error
    return None


def _require_content(file: Path) -> None:
    try:
        empty = not file.stat().st_size
    except OSError as error:
        raise ToastError(
            f"Cannot read the class map {file}.", error.strerror or str(error), code="image.unreadable"
        ) from error
    if empty:
        raise ToastError(f"Cannot read the class map {file}.", "It is empty.", code="image.unreadable")
