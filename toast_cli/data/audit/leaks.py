"""The search for one picture in two splits before a run, for data sets of moderate size."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from toast_cli.data.audit.check import REPORTED_SPLITS, ProgressTracker
from toast_cli.data.audit.image_scan import scan_images
from toast_cli.data.audit.near_duplicates import find_exact_duplicates, find_near_duplicates
from toast_cli.data.base import DataSet, get_split_kind
from toast_cli.data.images.folder_scan import to_printable_name
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.segmentation.dataset import SegmentationSplit
from toast_cli.data.streams.hugging_face import TableImages
from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import get_cache_folder, write_json
from toast_cli.utils.hashing import hash_json

SEARCH_VERSION = 1
"""Version of the search. It increases with every change of what is found, so that older results are not used."""
MAX_SEARCHED = 20_000
"""Maximum number of images that are searched before a run; reading them takes about a minute on a few cores."""

NOT_SEARCHED = "streams were not searched for pictures that are in two splits: images of a stream cannot be compared"
"""The note on data that is not searched."""


def describe_leaks(data: DataSet, track: ProgressTracker) -> list[str]:
    """Return warnings of pictures that are in two splits, possibly scaled, compressed, brightened or mirrored.

    Only splits of stored images are searched. The result is cached until a file changes.
    """
    splits: dict[str, Any] = {
        part: split.without_masks() if isinstance(split, FileSplit) else split
        for part in REPORTED_SPLITS
        if isinstance(split := data.splits.get(part), FileSplit | SegmentationSplit)
    }
    images = sum(map(len, splits.values()))
    if len(splits) < 2:
        streamed = [
            part for part in REPORTED_SPLITS if part in data.splits and get_split_kind(data.splits[part]) == "stream"
        ]
        return [NOT_SEARCHED] if len(streamed) > 1 else []
    if images > MAX_SEARCHED:
        return [
            f"{images:,} images are too many to search for pictures in two splits before a run; 'toast data check' does"
        ]
    cached = _find_cache_file(splits)
    if cached is not None and (known := _read_cache(cached)) is not None:
        return known
    scans = {
        part: list(track(scan_images(split), len(split), f"searching {part} for pictures of other splits"))
        for part, split in splits.items()
    }
    exact = [pair for pair in find_exact_duplicates(scans) if pair.first[0] != pair.second[0]]
    near = [pair for pair in find_near_duplicates(scans, {pair.second for pair in exact}) if pair.copies]
    pairs = [*exact, *near]
    counts = Counter((pair.first[0], pair.second[0]) for pair in pairs)
    warnings = []
    for (first, second), count in counts.items():
        pair = next(each for each in pairs if (each.first[0], each.second[0]) == (first, second))
        one, other = (to_printable_name(scans[part][index].name) for part, index in (pair.first, pair.second))
        pictures = "1 picture of" if count == 1 else f"{count:,} pictures of"
        warnings.append(
            f"{pictures} {second} {'is' if count == 1 else 'are'} in {first} too ({one} and {other}), perhaps scaled, "
            f"compressed or mirrored: results on {second} are too good. 'toast data check' lists all of them"
        )
    if cached is not None:
        _write_cache(cached, warnings)
    return warnings


def _find_cache_file(splits: dict[str, Any]) -> Path | None:
    """Return the file that holds the result for these files as they are now; None if they are not files on disk."""
    try:
        found: list[Any] = [
            (part, str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for part, file in _list_files(splits)
        ]
    except OSError:  # a file is missing, and reading it will say so
        return None
    # Images in the rows of a table are known by their content.
    rows = {part: split for part, split in splits.items() if isinstance(getattr(split, "root", None), TableImages)}
    found += [(part, split.stamp(index)) for part, split in rows.items() for index in range(len(split))]
    listed = [(part, name) for part, split in splits.items() for name in split.names]
    return get_cache_folder() / "leaks" / f"{hash_json([SEARCH_VERSION, found, listed])}.json" if found else None


def _list_files(splits: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    for part, split in splits.items():
        if isinstance(split, SegmentationSplit):
            yield from ((part, file) for file in chain(*split.pairs))
        elif isinstance(split.root, Path):
            yield from ((part, split.root / name) for name in split.names)
        elif isinstance(archive := getattr(split.root, "file", None), Path):
            yield part, archive


def _read_cache(file: Path) -> list[str] | None:
    try:
        return list(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # it is not there, or is damaged
        return None


def _write_cache(file: Path, warnings: list[str]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, warnings)
    except (OSError, ToastError):  # without room for it, the next run searches again
        pass
