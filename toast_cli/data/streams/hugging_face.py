"""`hf`: image data sets of the Hugging Face hub, or a local folder in one of its layouts.

The `datasets` library downloads a data set once into its cache and memory-maps it. It runs no code of a data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource, Label, LabelVector
from toast_cli.data.class_map import check_trainable_classes, normalize_class_name, read_class_file, sort_class_names
from toast_cli.data.hub import SAVED_FILES, import_datasets, require_hub_dataset
from toast_cli.data.identity import MAX_LISTED_SAMPLES
from toast_cli.data.images.files import compute_file_stamp, hash_blocks, hash_stamps, open_file
from toast_cli.data.images.folder_scan import DiskFolder
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.labelled_rows import label_rows
from toast_cli.data.labels import read_labels
from toast_cli.data.paths import list_candidate_paths
from toast_cli.data.split_names import SplitAssignment, assign_splits, parse_split_name
from toast_cli.data.splits import TASK_BY_OPTION, TargetOptions, complete_splits, make_train_val_test_splits
from toast_cli.data.streams.stream_split import StreamSplit
from toast_cli.utils.config import LOCAL_PATH
from toast_cli.utils.errors import ToastError, UsageError

FIRST_ROWS = 100
"""Number of rows of a stream that show whether it has labels."""

LIBRARY_SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
"""Names of folders that the `datasets` library reads as splits."""


class HuggingFaceOptions(TargetOptions):
    """Options of a Hugging Face data set, with the names of its columns."""

    name: Literal["hf"] = Field("hf", description="the data set")
    path: str = Field(
        min_length=1,
        examples=["ethz/food101"],
        json_schema_extra=LOCAL_PATH,
        description="the id of a data set on the Hugging Face hub, or a local folder of images or Parquet files; a "
        "relative path is looked up in --data-dir, then in the current folder",
    )
    subset: str | None = Field(
        None, examples=["en"], description="the subset (configuration) of a data set that has several"
    )
    revision: str | None = Field(
        None, examples=["main"], description="commit, branch or tag on the hub; default: the newest"
    )
    image_column: str | None = Field(
        None, examples=["image"], description="column with the image; default: the only column of images"
    )
    label_column: str | None = Field(
        None, examples=["label"], description="column with the class; default: the only column of classes"
    )
    streaming: bool = Field(False, description="stream the data set while training, without storing it on disk")
    samples: int | None = Field(
        None,
        ge=1,
        examples=[50000],
        description="with streaming: number of training images, if the data set does not state it",
    )
    shuffle_buffer: int = Field(
        1000,
        ge=1,
        description="with streaming: number of images that each reader shuffles at a time, in addition to its shards",
    )


def open_hf(options: HuggingFaceOptions, data_dir: Path | None) -> DataSet:
    """Download the data set if it is not cached, and read its labels without decoding images.

    With `streaming`, read only its description and its first rows.

    Raises:
        UsageError: `streaming` is set, and the data set or the other options do not support it.
        ToastError: the `datasets` library is not installed, the data set does not exist, or it has no labelled images.
    """
    if options.streaming:
        return _open_stream(options, data_dir)
    folder = next((place for place in list_candidate_paths(options.path, data_dir) if place.exists()), None)
    tables, notes = _load_splits(options, folder)
    image, columns = _find_columns(options, tables["train"])
    given = read_class_file(options.class_file, data_dir)
    rows, start = {}, 0
    for part, table in tables.items():
        rows[part] = range(start, start := start + len(table))

    def make_error(index: int, why: str, what_to_do: str) -> ToastError:
        part = next(part for part, numbers in rows.items() if index in numbers)
        place = f"{options.path}, row {index - rows[part].start + 1} of {part}"
        return ToastError(f"{place}: {why}.", what_to_do=what_to_do, code="data.invalid-row")

    cells = {
        column: [value for table in tables.values() for value in _get_stored_labels(table, column)]
        for column in columns
    }
    listed = _get_class_names(tables["train"], columns[0]) if len(columns) == 1 else ()
    read = label_rows(cells, rows, options, options.path, make_error, given, listed)
    parts = {}
    for part, labels in read.labels.items():
        table = tables[part]
        if len(labels) < len(table):
            table = table.select([index - rows[part].start for index in read.rows[part]])
        undecoded = table.cast_column(image, type(table.features[image])(decode=False))
        parts[part] = _build_file_split(undecoded, image, part, labels, read.vector, folder)
    notes += read.notes
    if read.vector is None or read.vector.target == "labels":
        notes += check_trainable_classes(parts["train"], read.classes, options.path, given is not None)
    if len(tables) == 1:
        made, made_notes = make_train_val_test_splits(parts["train"], options)
    else:
        made, made_notes = complete_splits(parts, options, options.path)
    target = "class" if read.vector is None else read.vector.target
    return DataSet(read.classes, made, (*notes, *made_notes), tuple(read.warnings), target=target)


def _open_stream(options: HuggingFaceOptions, data_dir: Path | None) -> DataSet:
    """Open the data set as streams, with its own splits only: nothing can be held out of a stream."""
    if options.target != "class":
        chosen = next(name for name in TASK_BY_OPTION if getattr(options, name) is not None)
        raise UsageError(
            f"dataset.{chosen} does not support streams, whose images have one class each.",
            what_to_do="Use dataset.streaming=false.",
            code="data.not-with-streaming",
        )
    folder = next((place for place in list_candidate_paths(options.path, data_dir) if place.exists()), None)
    streams, notes = _load_splits(options, folder)
    if not all(hasattr(stream, "num_shards") for stream in streams.values()):
        raise UsageError(
            f"{options.path} is stored on disk as a table and cannot be streamed.",
            what_to_do="Use dataset.streaming=false.",
            code="data.not-streamable",
        )
    if options.shots is not None:
        raise UsageError(
            "dataset.shots does not support streams, which have no random access to images.",
            code="data.not-with-streaming",
        )
    image, (label, *_) = _find_columns(options, streams["train"])
    classes = read_class_file(options.class_file, data_dir) or _get_class_names(streams["train"], label)
    if not classes:
        raise UsageError(
            f"{options.path} does not list the classes of its column '{label}'.",
            what_to_do="List them in a dataset.class_file, or use dataset.streaming=false.",
            code="data.unknown-class-names",
        )
    splits = {}
    notes.append("no hash of the images is recorded: those of a stream are not listed anywhere. Its files are compared")
    files = _list_stream_files(options, folder)
    for part, stream in streams.items():
        plain = stream.select_columns([image, label]).cast_column(image, type(stream.features[image])(decode=False))
        first = [row[label] for row in islice(plain, FIRST_ROWS)]
        if part != "train" and all(value is None for value in read_labels([*first, *range(2)])[: len(first)]):
            notes.append(f"{part}: not read, its images have no labels")
            continue
        known = (stream.info.splits or {}).get(stream.split)
        length = options.samples if part == "train" and options.samples else known and known.num_examples
        if not length and part == "train":
            raise UsageError(
                f"{options.path} does not state the number of images in its train split.",
                what_to_do="Set dataset.samples=NUMBER, or use dataset.streaming=false.",
                code="data.unknown-length",
            )
        length = length or sum(1 for _ in stream.select_columns([label]))
        where = f"{options.path} ({part})"
        numbered = tuple(map(normalize_class_name, getattr(stream.features[label], "names", ())))
        splits[part] = StreamSplit(
            plain,
            image,
            label,
            classes,
            length,
            where,
            shuffle_buffer=options.shuffle_buffer,
            content=hash_stamps(found) if (found := files.get(str(stream.split))) is not None else None,
            numbered=numbered,
        )
    if "val" not in splits:
        notes.append(f"validation: {options.path} has no validation split, and a stream cannot be split")
    return DataSet(classes, splits, tuple(notes))


def _list_stream_files(options: HuggingFaceOptions, folder: Path | None) -> dict[str, list[Path | str]]:
    """Return the files of each split that the library reads: paths, or URLs with the commit of the hub.

    Splits of more than `MAX_LISTED_SAMPLES` files are left out.
    """
    from datasets import load_dataset_builder

    found = None if folder is None or options.subset else _find_split_folders(options, folder)
    files = {part: f"{name}/**" for part, name in found.names.items()} if found else None
    where = str(folder or options.path)
    builder = load_dataset_builder(where, options.subset, data_files=files, revision=options.revision)
    return {
        str(split): [name if "://" in name else Path(name) for name in map(str, names)]
        for split, names in (builder.config.data_files or {}).items()
        if len(names) <= MAX_LISTED_SAMPLES
    }


SOURCE = DataSource(
    HuggingFaceOptions,
    open_hf,
    "a data set of images on the Hugging Face hub, downloaded once, or a local folder: hf:NAME "
    '(pip install "datasets>=4.4")',
    home="https://huggingface.co/datasets",
    task_by_option=TASK_BY_OPTION,
)


@dataclass(frozen=True)
class TableImages:
    """The images stored in a table, as the root of a `FileSplit`. Names end with the index of the row."""

    table: Any
    column: str

    def __truediv__(self, name: str) -> TableImage:
        return TableImage(self, name)


@dataclass(frozen=True)
class TableImage:
    """An image in a table."""

    rows: TableImages
    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def stamp(self) -> int | None:
        """Number that changes with the content of the image; None if it cannot be read."""
        cell = self._read_cell()
        if cell["bytes"] is None:
            return compute_file_stamp(Path(cell["path"]))
        content = cell["bytes"]
        return hash_blocks(len(content), lambda start, count: content[start : start + count])

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Return a stream of its bytes."""
        cell = self._read_cell()
        return open_file(Path(cell["path"])) if cell["bytes"] is None else BytesIO(cell["bytes"])

    def _read_cell(self) -> Mapping[str, Any]:
        return self.rows.table[int(self.name.rpartition("/")[2])][self.rows.column]


def _build_file_split(
    table: Any,
    column: str,
    part: str,
    labels: tuple[Label, ...],
    vector: LabelVector | None,
    folder: Path | None,
) -> FileSplit:
    """Build the split from files if the local folder contains them, or from the images stored in the table."""
    if folder is not None and len(table) and table[0][column]["bytes"] is None:
        # The library resolves links in the folder's own path, but not below it.
        paths, real = [Path(row[column]["path"]) for row in table.select_columns([column])], folder.resolve()
        if all(path.is_relative_to(real) for path in paths):
            below = (path.relative_to(real).as_posix() for path in paths)
            images = sorted(zip(labels, below, strict=True))  # same order as in `folder`
            ordered = tuple(label for label, _ in images)
            return FileSplit(folder, tuple(name for _, name in images), ordered, label_vector=vector)
    names = tuple(f"{part}/{number:07d}" for number in range(len(table)))
    return FileSplit(TableImages(table, column), names, labels, label_vector=vector)


def _get_stored_labels(table: Any, column: str) -> list[Any]:
    """Return the label or labels of every image, None if there is none. A class feature stores indices of names."""
    names, values = _get_names(table.features[column]), table[column][:]
    if names is None:
        return values
    if _get_item_feature(table.features[column]) is None:
        return [None if value is None or value < 0 else names[value] for value in values]
    return [[names[each] for each in value or ()] for value in values]


def _get_item_feature(feature: Any) -> Any:
    """Return the feature of the items of a list feature; None for other features."""
    return getattr(feature, "feature", None)


def _get_names(feature: Any) -> Sequence[str] | None:
    """Return the class names of a feature, or of the items of a list feature; None if it has none."""
    return getattr(feature, "names", None) or getattr(_get_item_feature(feature), "names", None)


def _get_class_names(table: Any, column: str) -> tuple[str, ...]:
    """Return the class names of a column; empty if it has none.

    Keep their order, unless they are sorted as text: then sort them as the other sources do.
    """
    names = tuple(map(normalize_class_name, _get_names(table.features[column]) or ()))
    return sort_class_names(names) if list(names) == sorted(names) else names


def _find_columns(options: HuggingFaceOptions, table: Any) -> tuple[str, tuple[str, ...]]:
    """Return the column of images and those of labels: those that the options name, or the only ones of their type.

    Raises:
        ToastError: there is no such column, or there are several.
    """
    from datasets import ClassLabel, Image

    image = _find_column(options, table, "image", options.image_column, Image)
    chosen = options.target_columns or options.label_columns or (options.label_column,)
    return image, tuple(_find_column(options, table, "label", each, ClassLabel) for each in chosen)


def _find_column(options: HuggingFaceOptions, table: Any, what: str, given: str | None, kind: Any) -> str:
    matching = [
        name
        for name, feature in table.features.items()
        if isinstance(feature, kind) or (what == "label" and isinstance(_get_item_feature(feature), kind))
    ]
    if given is None and what == "label" and not matching and "label" in table.features:
        matching = ["label"]
    if given is not None:
        matching = [name for name in table.features if name == given]
    if len(matching) != 1:
        raise ToastError(
            f"{options.path} has no column '{given}'."
            if given is not None
            else f"{options.path} has {len(matching) or 'no'} columns of type {kind.__name__} for the {what}.",
            f"Its columns are {', '.join(table.features)}.",
            f"Give the column: dataset.{what}_column=NAME.",
            code="data.missing-column" if given is not None else "data.ambiguous-column",
        )
    return matching[0]


def _load_splits(options: HuggingFaceOptions, folder: Path | None) -> tuple[dict[str, Any], list[str]]:
    """Return the tables (or streams) of train, val and test, and notes on their names.

    Raises:
        ToastError: the data set cannot be opened, has no train split, or the names of its splits are not clear.
    """
    found = None if folder is None or options.subset else _find_split_folders(options, folder)
    files = {part: f"{name}/**" for part, name in found.names.items()} if found else None
    loaded = _load(options, folder, files)
    splits = found or assign_splits(list(loaded), options.split_names, options.path, "split")
    if "train" not in splits.names:
        raise ToastError(
            f"{options.path} has no train split.",
            f"Its splits are {', '.join(loaded)}.",
            "Choose another dataset.subset, or say which one it is: dataset.split_names={NAME: train}.",
            code="data.no-train-split",
        )
    tables = {part: loaded[part if found else name] for part, name in splits.names.items()}
    return tables, splits.describe(options.path, "folder" if found else "split")


def _find_split_folders(options: HuggingFaceOptions, folder: Path) -> SplitAssignment | None:
    """Return the split folders of a local folder whose names the `datasets` library does not know, or None."""
    if not folder.is_dir() or any((folder / name).exists() for name in (*SAVED_FILES, "README.md")):
        return None
    names = [
        name for name in DiskFolder(folder).list_folders() if DiskFolder(folder).list_files_recursively(name).images
    ]
    known = [name for name in names if parse_split_name(name) is not None]
    if not (options.split_names or any(name not in LIBRARY_SPLIT_NAMES for name in known)):
        return None
    splits = assign_splits(names, options.split_names, options.path)
    return splits if "train" in splits.names else None


def _load(options: HuggingFaceOptions, folder: Path | None, files: Mapping[str, str] | None) -> Mapping[str, Any]:
    """Return the splits of the data set as tables (or streams) of the library."""
    datasets = import_datasets()
    if folder is None:
        require_hub_dataset(options.path, list_candidate_paths(options.path, None))
    try:
        if folder is not None and any((folder / name).exists() for name in SAVED_FILES):
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(
                str(folder or options.path),
                options.subset,
                data_files=files,
                revision=options.revision,
                streaming=options.streaming,
            )
    except Exception as error:  # the hub's client raises many kinds of errors, from timeouts to missing files
        raise ToastError(
            f"Cannot open the Hugging Face data set '{options.path}'.",
            f"{type(error).__name__}: {error}",
            "Check the name and dataset.subset. Without network access, it must be a local folder or in the cache "
            "(HF_HOME).",
            code="data.cannot-open",
        ) from error
    return found if isinstance(found, Mapping) else {"train": found}
