"""The images to predict: files, folders, patterns, tables, archives, shards and data sets as one sequence of images."""

from __future__ import annotations

import glob
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from toast_cli import registry
from toast_cli.data.base import DataSet, Sample, get_image_splits, set_white
from toast_cli.data.images.archive_index import ArchiveIndex, open_archive_index
from toast_cli.data.images.folder_scan import (
    DiskFolder,
    FolderContents,
    describe_unread_files,
    is_heif_name,
    is_image_name,
    summarize_file_names,
)
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.images.listed_files import match_listed_files
from toast_cli.data.images.loader import drop_masks
from toast_cli.data.images.table import SEPARATORS_BY_SUFFIX, list_table_images
from toast_cli.data.paths import find_file, find_unicode_form
from toast_cli.data.segmentation.dataset import SegmentationSplit
from toast_cli.data.streams.webdataset import find_shards
from toast_cli.evaluation.other_data import choose_dataset
from toast_cli.model.recipe_data import open_data
from toast_cli.recipe.parse import build_dataset_options, replace_recipe_fields
from toast_cli.recipe.schema import Recipe
from toast_cli.recipe.unvalidated_recipe import expand_shorthand
from toast_cli.utils.errors import ToastError, UsageError

T = TypeVar("T")
TABLE_SUFFIXES = frozenset({*SEPARATORS_BY_SUFFIX, ".parquet"})
ARCHIVE_SUFFIXES = frozenset({".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz"})
EXPECTED_SOURCES = (
    "Give image files, folders, quoted patterns ('photos/*.jpg'), tables with a column of paths, zip or tar files, "
    "shards:FOLDER, or a data set such as hf:NAME."
)


@dataclass(frozen=True)
class SourceImages:
    """The images of one source: a split, the path of each image as it is shown, and notes on what is not read."""

    split: Any
    paths: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PredictionImages:
    """The images of all sources in one order, without labels: an `ImageSplit`.

    Attributes:
        splits: the splits of the sources.
        names: path of every image as it is shown; no two are equal.
        places: number of its split, and index in that split, of every image, one after the other.
        notes: sentences on files that are not read.
    """

    splits: tuple[Any, ...]
    names: tuple[str, ...]
    places: tuple[array[int], array[int]]
    notes: tuple[str, ...] = ()
    has_masks: bool = False

    @property
    def labels(self) -> Sequence[int]:
        """The class 0 for every image: their labels are unknown, or not used."""
        return (0,) * len(self)

    @property
    def digest(self) -> str:
        """A hash of the paths in their order."""
        return sha256("\n".join(self.names).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Sample:
        """Read one image.

        Raises:
            ToastError: it cannot be read.
        """
        number, inner = self.places[0][index], self.places[1][index]
        return replace(self.splits[number].load(inner), label=0, name=self.names[index], mask=None)

    def take(self, indices: Sequence[int]) -> PredictionImages:
        """Return the images at `indices`, in that order."""
        numbers, inner = (array("l", (place[i] for i in indices)) for place in self.places)
        return replace(self, names=tuple(self.names[i] for i in indices), places=(numbers, inner))


def open_prediction_images(
    sources: Sequence[str], recipe: Recipe, split: str | None = None, overrides: Sequence[str] = ()
) -> PredictionImages:
    """Find the images of all sources, without opening one. An image that several sources name is taken once.

    Args:
        sources: what a user types.
        recipe: the recipe of the run: its data set is opened with its own settings, other tables with its columns where
            they have them, and its value of white is used.
        split: the split of data sets; None: all of them.
        overrides: dotted fields of the tables and data sets, such as `dataset.image_column=file`.

    Raises:
        UsageError: there is no such source, it has no such split, or an override is invalid.
        ToastError: a source cannot be read, or has no images.
    """
    opened = list(_open_sources(sources, recipe, split, overrides))
    check_dataset_options(sources, split, overrides)
    numbers, inner, names = array("l"), array("l"), dict[str, None]()
    seen: set[str] = set()
    for number, each in enumerate(opened):
        root = getattr(each.split, "root", None)
        for index, path in enumerate(each.paths):
            key = os.path.abspath(root / each.split.names[index]) if isinstance(root, Path) else path  # noqa: PTH100
            if key not in seen:
                seen.add(key)
                numbers.append(number)
                inner.append(index)
                names[_to_text(key if _to_text(path) in names else path)] = None
    white = recipe.images.white
    splits = (drop_masks(each.split) for each in opened)
    return PredictionImages(
        tuple(split if white is None else set_white(split, white) for split in splits),
        tuple(names),
        (numbers, inner),
        tuple(dict.fromkeys(note for each in opened for note in each.notes)),
    )


def _open_sources(
    sources: Sequence[str], recipe: Recipe, split: str | None, overrides: Sequence[str]
) -> Iterator[SourceImages]:
    """Yield the images of every source; files that are given one after the other are one split."""
    files: list[str] = []
    for source in sources:
        path = find_unicode_form(Path(source).expanduser())
        if _is_file(path) and path.suffix.lower() not in TABLE_SUFFIXES | ARCHIVE_SUFFIXES:
            files.append(str(path))
            continue
        if files:
            yield _make_files(Path(), files)
            files = []
        if _is_file(path):
            is_table = path.suffix.lower() in TABLE_SUFFIXES
            yield _open_table(path, recipe, overrides) if is_table else _open_archive(path)
        elif _is_folder(path):
            yield _open_folder(path)
        elif source.partition(":")[0] == "shards":
            yield from _open_shards(source.partition(":")[2], recipe)
        elif source.partition(":")[0] == "table" and split is None:
            folder = Path(recipe.data_dir).expanduser() if recipe.data_dir else None
            yield _open_table(find_file(source.partition(":")[2], folder, "table:FILE"), recipe, overrides)
        elif is_dataset(source):
            yield from _open_dataset(source, recipe, split, overrides)
        elif glob.has_magic(source):
            yield from _open_pattern(source)
        else:
            raise UsageError(
                f"There is no file, folder or data set '{source}'.",
                what_to_do=EXPECTED_SOURCES,
                code="data.missing-source",
            )
    if files:
        yield _make_files(Path(), files)


def _make_files(root: Path, names: Sequence[str], notes: Sequence[str] = ()) -> SourceImages:
    split = FileSplit(root, tuple(names), (0,) * len(names))
    return SourceImages(split, tuple(str(root / name) for name in names), tuple(notes))


def _open_folder(folder: Path) -> SourceImages:
    """Return the images below a folder."""
    names, notes = _list_images(str(folder), DiskFolder(folder).list_files_recursively())
    return _make_files(folder, names, notes)


def _list_images(place: str, found: FolderContents) -> tuple[list[str], list[str]]:
    """Return the images in a folder or an archive, sorted, and notes on what is not read.

    HEIC files are among the images: reading one says what is missing.

    Raises:
        ToastError: there are no images.
    """
    heif = [name for name in found.others if is_heif_name(name)]
    others = [name for name in found.others if not is_heif_name(name)]
    notes, names = describe_unread_files(place, [FolderContents([], others, found.links)]), [*found.images, *heif]
    if not names:
        raise ToastError(f"No images found in {place}.", notes, EXPECTED_SOURCES, code="data.no-images")
    return sorted(names), notes


def _open_table(file: Path, recipe: Recipe, overrides: Sequence[str]) -> SourceImages:
    """Return the images that a table lists, each shown as the table writes it. A missing one is met when it is read."""
    options = choose_dataset(f"table:{file.absolute()}", recipe, None, overrides)
    paths = list_table_images(file, options["image_column"])
    if not paths:
        raise ToastError(f"{file} lists no images.", code="data.empty-table")
    found = match_listed_files(file.parent, paths)
    names = tuple(name or path for name, path in zip(found, paths, strict=True))
    return SourceImages(FileSplit(file.parent, names, (0,) * len(names)), tuple(paths))


def _open_archive(file: Path) -> SourceImages:
    """Return the images in a zip or tar file."""
    index = open_archive_index(file)
    names, notes = _list_images(str(file), index.list_files_recursively())
    split = FileSplit(index, tuple(names), (0,) * len(names))
    return SourceImages(split, tuple(str(index / name) for name in names), (*index.notes, *notes))


def _open_shards(path: str, recipe: Recipe) -> Iterator[SourceImages]:
    """Yield the images of every shard on disk: a shard is a tar file, whose images can be read in any order."""
    shards = find_shards(path, Path(recipe.data_dir) if recipe.data_dir else None)
    if any("://" in shard for shard in shards):
        raise UsageError(
            f"The shards {path} are not on this disk.",
            "Images that are streamed can be neither divided among processes nor skipped by --resume.",
            "Download the shards, and give their folder as shards:FOLDER.",
            code="data.streamed",
        )
    for shard in shards:
        yield _open_archive(Path(shard))


def _open_pattern(pattern: str) -> Iterator[SourceImages]:
    """Yield the images, folders and archives that match a pattern with *, ?, [...] or **."""
    matches = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))  # noqa: PTH207
    suffixes = {match: Path(match).suffix.lower() for match in matches}
    files = [match for match in matches if is_image_name(match) or is_heif_name(match)]
    others = [match for match in matches if match not in set(files)]
    folders = [Path(match) for match in others if _is_folder(Path(match))]
    archives = [Path(match) for match in others if suffixes[match] in (".zip", ".tar")]
    unread = sorted(set(others) - {str(place) for place in (*folders, *archives)})
    if "**" in pattern:  # which matches the content of folders, too
        folders = []
    if not (files or folders or archives):
        raise UsageError(
            f"No images match '{pattern}'.",
            f"It matches {summarize_file_names(unread)}." if unread else "",
            EXPECTED_SOURCES,
            code="data.no-images",
        )
    if files:
        notes = [f"{pattern}: not read, no image suffix: {summarize_file_names(unread)}"] if unread else []
        yield _make_files(Path(), files, notes)
    yield from map(_open_folder, folders)
    yield from map(_open_archive, archives)


def is_dataset(source: str) -> bool:
    """Return whether a source is the name of a data set, such as `hf:NAME`."""
    return expand_shorthand("dataset", source)["name"] in registry.list_names(registry.SOURCES)


def check_dataset_options(sources: Sequence[str], split: str | None, overrides: Sequence[str] = ()) -> None:
    """Check that a split or a field of data sets is only given if a source is a data set, or for a field a table.

    Raises:
        UsageError: no source is one.
    """
    if overrides and not any(is_dataset(source) or _is_table(Path(source).expanduser()) for source in sources):
        raise UsageError(
            f"{overrides[0]} is a field of tables and data sets, and no source is one.",
            what_to_do="Leave it out, or name a table or a data set: table:FILE, folder:PATH, hf:NAME, ...",
            code="cli.conflicting-options",
        )
    if split is not None and not any(map(is_dataset, sources)):
        raise UsageError(
            "--split selects a part of a data set, and no source is one.",
            what_to_do="Leave --split out, or name a data set: folder:PATH, hf:NAME, ...",
            code="cli.conflicting-options",
        )


def open_dataset(source: str, recipe: Recipe, overrides: Sequence[str] = ()) -> DataSet:
    """Open a data set by its name. The run's own data set has the run's settings. Overrides replace some of them.

    Raises:
        UsageError: an override is invalid.
        ToastError: it cannot be opened.
    """
    own = recipe.dataset.model_dump(mode="json")
    if any(own.get(field) != value for field, value in expand_shorthand("dataset", source).items()):
        dataset = choose_dataset(source, recipe, recipe.data_dir, overrides)
    else:
        dataset = build_dataset_options(source, own, overrides).model_dump(mode="json")
    return open_data(replace_recipe_fields(recipe, dataset=dataset))


def select_splits(splits: Mapping[str, T], source: str, split: str | None) -> dict[str, T]:
    """Return the named split of a data set, or all of them.

    Raises:
        UsageError: there is no such split.
    """
    if split is None:
        return dict(splits)
    if split not in splits:
        raise UsageError(
            f"The data set '{source}' has no split '{split}'.",
            what_to_do=f"Use one of: {', '.join(splits)}.",
            code="data.missing-split",
        )
    return {split: splits[split]}


def _open_dataset(source: str, recipe: Recipe, split: str | None, overrides: Sequence[str]) -> Iterator[SourceImages]:
    """Yield the splits of a data set."""
    splits = get_image_splits(open_dataset(source, recipe, overrides), source)
    for each in select_splits(splits, source, split).values():
        if isinstance(each, SegmentationSplit):  # its class maps are not read
            yield _make_files(Path(), [str(image) for image, _ in each.pairs])
            continue
        root: Any = getattr(each, "root", None)
        is_file = isinstance(root, Path | ArchiveIndex)
        yield SourceImages(each, tuple(str(root / one) if is_file else f"{source}/{one}" for one in each.names))


def _to_text(path: str) -> str:
    """Return a path that can be written: bytes of a name that are not UTF-8 are escaped, as `\\udce9`."""
    return path.encode(errors="backslashreplace").decode()


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLE_SUFFIXES and _is_file(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long for the file system, or has a null character
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
