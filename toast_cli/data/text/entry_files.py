"""Entries of texts from files, folders and data sets of the Hugging Face hub, whatever their format."""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toast_cli.data.hub import SAVED_FILES, import_datasets, load_saved_splits, load_splits, require_hub_dataset
from toast_cli.data.paths import list_candidate_paths
from toast_cli.data.split_names import assign_splits, parse_split_name
from toast_cli.data.text.conversation_format import list_filled_fields
from toast_cli.data.text.json_lines import COMPRESSED_SUFFIXES, read_bytes, read_json_list, require_utf8
from toast_cli.utils.errors import ToastError
from toast_cli.utils.table_files import import_pyarrow

ROWS_AT_A_TIME = 1000
"""Number of rows of a Parquet file in memory."""

MAX_CELL_CHARACTERS = 2**31 - 1
"""Largest cell of a CSV file; the limit of the library is 131,072."""


@dataclass(frozen=True)
class EntryFile:
    """The entries of a file, or of a split of a data set.

    Attributes:
        name: its name in messages.
        entries: its entries in order.
        split: the split that it is; None if splits are to be made of it.
        notes: sentences for the user.
    """

    name: str
    entries: Sequence[Any]
    split: str | None = None
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class EntryOptions:
    """How entries are found: see `ConversationOptions`."""

    subset: str | None = None
    split_names: Mapping[str, Any] = field(default_factory=dict)
    list_field: str | None = None


def read_entry_files(
    path: str, data_dir: Path | None, options: EntryOptions, is_entry: Callable[[Mapping[str, Any]], bool]
) -> list[EntryFile]:
    """Read a file, a pattern of files, a folder, or a data set of the hub.

    `is_entry` tells a file that is one entry from one with a list of entries under a key.

    Raises:
        UsageError: There is no such file, folder or data set.
        ToastError: It cannot be read.
    """
    candidates = list_candidate_paths(path, data_dir)
    found = next((place for place in candidates if place.exists()), None)
    if found is None and glob.has_magic(path):
        pattern = next((each for each in candidates if each.parent.is_dir()), candidates[0])
        files = sorted(file for file in pattern.parent.glob(pattern.name) if file.is_file())
        if files:
            return _read_files(files, pattern.parent, path, options, is_entry)
    if found is None:
        import_datasets()
        require_hub_dataset(path, candidates)
        return _label_splits(load_splits(path, options.subset), path, options)
    if found.is_dir() and any((found / name).exists() for name in SAVED_FILES):
        return _label_splits(load_saved_splits(found), found.name, options)
    if found.is_dir() and (found / "README.md").is_file():  # a downloaded data set, whose card describes its splits
        return _label_splits(load_splits(found, options.subset), found.name, options)
    if found.is_dir():
        files = sorted(file for file in found.rglob("*") if _get_suffix(file) in READERS and file.is_file())
        if not files:
            raise ToastError(
                f"{found} contains no file in a supported format.",
                what_to_do=f"Supported are {', '.join(READERS)}, also compressed ({', '.join(COMPRESSED_SUFFIXES)}).",
                code="text.unsupported-files",
            )
        return _read_files(files, found, path, options, is_entry)
    entries, notes = read_entry_file(found, found.name, options, is_entry)
    return [EntryFile(found.name, entries, None, notes)]


def _read_files(
    files: Sequence[Path],
    folder: Path,
    where: str,
    options: EntryOptions,
    is_entry: Callable[[Mapping[str, Any]], bool],
) -> list[EntryFile]:
    """Read several files. They are splits if the name of each is that of one; otherwise splits are made of all."""
    names = {file: file.relative_to(folder).as_posix() for file in files}
    stems = {file: name.partition(".")[0] for file, name in names.items()}
    meanings = {file: options.split_names.get(stem) or _get_split(stem) for file, stem in stems.items()}
    own = "train" in meanings.values() and all(meanings.values())
    read = []
    for file, name in names.items():
        split = meanings[file] if own else None
        if split == "unused":
            read.append(EntryFile(name, (), split, (f"{name} is not read (dataset.split_names).",)))
            continue
        entries, notes = read_entry_file(file, name, options, is_entry)
        read.append(EntryFile(name, entries, split, notes))
    if not own and any(meanings.values()):
        found = ", ".join(names[file] for file, split in meanings.items() if split)
        note = (
            f"{where}: {found} are read together with the other files and divided anew, those for evaluation too; "
            "dataset.split_names gives the split of a file by its name."
        )
        read[0] = EntryFile(read[0].name, read[0].entries, None, (*read[0].notes, note))
    return read


def _get_split(name: str) -> str | None:
    meaning = parse_split_name(name)
    return meaning.split if meaning is not None and meaning.split in ("train", "val", "test") else None


def _label_splits(splits: Mapping[str, Any], where: str, options: EntryOptions) -> list[EntryFile]:
    """Return the entries of the splits of a data set; a split alone is divided as a file is."""
    if len(splits) == 1:
        return [EntryFile(where, [remove_nulls(row) for row in next(iter(splits.values()))])]
    assigned = assign_splits(list(splits), options.split_names, where, "split")
    if "train" not in assigned.names:
        raise ToastError(
            f"{where} has no split to train on.",
            f"It has {', '.join(splits)}.",
            "Name it: dataset.split_names='{NAME: train}'.",
            code="data.no-train-split",
        )
    notes = tuple(assigned.describe(where, "split"))
    return [
        EntryFile(
            f"{where} ({name})", [remove_nulls(row) for row in splits[name]], split, notes if split == "train" else ()
        )
        for split, name in assigned.names.items()
    ]


def is_entry_file(path: Path) -> bool:
    """Return whether the name of a file is that of a table or of JSON, which may be compressed."""
    return _get_suffix(path) in READERS


def read_entry_file(
    path: Path, name: str, options: EntryOptions, is_entry: Callable[[Mapping[str, Any]], bool]
) -> tuple[Sequence[Any], tuple[str, ...]]:
    """Return the entries of a file, with notes. `is_entry` is as in `read_entry_files`.

    Raises:
        ToastError: It cannot be read.
    """
    if not path.is_file():
        raise ToastError(f"{path} is not a regular file.", "It is a pipe or a device.", code="data.not-a-regular-file")
    suffix = _get_suffix(path)
    if suffix in (".csv", ".tsv", ".parquet"):
        return list(READERS[suffix](path)), ()
    return _unwrap_list(read_json_list(path), path, name, options.list_field, is_entry)


def _unwrap_list(
    values: Sequence[Any], path: Path, name: str, key: str | None, is_entry: Callable[[Mapping[str, Any]], bool]
) -> tuple[Sequence[Any], tuple[str, ...]]:
    """Return the entries of a file that holds one object with a list of entries under a key."""
    if len(values) != 1 or not isinstance(values[0], dict):
        if key is not None:
            raise ToastError(
                f"{path} is not an object with a list under '{key}'.",
                what_to_do="Leave out dataset.list_field.",
                code="text.no-such-list",
            )
        return values, ()
    (whole,) = values
    lists = [each for each, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if key is None and (is_entry(whole) or not lists):
        return values, ()
    if (key is None and len(lists) > 1) or (key is not None and key not in lists):
        raise ToastError(
            f"{path} has {'several lists' if lists else 'no list'} of objects"
            + ("." if key is None else f" in '{key}'."),
            f"Lists are in {', '.join(map(repr, lists))}." if lists else "",
            "Set dataset.list_field to the one with the entries.",
            code="text.no-such-list",
        )
    key = key or lists[0]
    notes = [f"The entries of {name} are in '{key}'."]
    if others := list(list_filled_fields(whole, (key,))):
        notes.append(f"Not used in {name}: {', '.join(others)} beside '{key}'.")
    return whole[key], tuple(notes)


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV file, whose first row names the columns. Semicolons may separate them, as in Excel.

    Raises:
        ToastError: The file is not UTF-8 text, or a row has more cells than there are columns.
    """
    require_utf8(path)
    text = read_bytes(path).decode()
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    header = text.partition("\n")[0]
    separator = "\t" if _get_suffix(path) == ".tsv" or "\t" in header else "," if "," in header else ";"
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for row in rows:
            if None in row:
                raise ToastError(
                    f"Cannot read {path}.",
                    f"Line {rows.line_num} has more cells than the {len(rows.fieldnames or ()):,} columns.",
                    "Put texts with the separator in quotation marks.",
                    code="text.invalid-table",
                )
            yield dict(row)
    except csv.Error as error:
        raise ToastError(
            f"Cannot read {path}.", f"Line {rows.line_num}: {error}.", code="text.invalid-table"
        ) from error


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import_pyarrow()
    from pyarrow.lib import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_A_TIME, use_threads=False):
                yield from map(remove_nulls, batch.to_pylist())
    except (OSError, ArrowException) as error:
        raise ToastError(
            f"Cannot read {path}.",
            f"{type(error).__name__}: {error}",
            "Check that the file is whole.",
            code="data.unreadable-file",
        ) from error


def remove_nulls(value: Any) -> Any:
    """Return a value without the fields that are None: columns of Arrow have a field in every row if it is in one."""
    if isinstance(value, Mapping):
        return {name: remove_nulls(each) for name, each in value.items() if each is not None}
    return [remove_nulls(each) for each in value] if isinstance(value, list) else value


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": read_json_list,
    ".jsonl": read_json_list,
    ".ndjson": read_json_list,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
"""Readers of files by suffix. A file with another suffix is read as JSON."""


def _get_suffix(path: Path) -> str:
    """Return the suffix of a file in lower case, without those of compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED_SUFFIXES]
    return suffixes[-1] if suffixes else ""
