"""`hf`: image data sets of the Hugging Face hub, or a local folder in one of its layouts, through its own library.

The library fetches a data set once into its cache and maps it into memory from there. It runs no code of a data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.class_map import check_trainable_classes, read_class_file, require_known_classes, sort_class_names
from toast_cli.data.images.file_split import FileSplit
from toast_cli.data.images.files import open_file
from toast_cli.data.paths import list_candidate_paths
from toast_cli.data.splits import SPLIT_ALIASES, UnsplitDataOptions, complete_splits, make_train_val_test_splits
from toast_cli.data.streams.dataset import StreamSplit
from toast_cli.utils.errors import ToastError, UsageError


class HuggingFaceOptions(UnsplitDataOptions):
    """A Hugging Face data set, and what its columns are called."""

    name: Literal["hf"] = Field("hf", description="the data set")
    path: str = Field(
        min_length=1,
        description="the id of a data set on the Hugging Face hub, or a local folder of images or Parquet files; a "
        "relative one is looked up in --data-dir, then in the current folder",
    )
    subset: str | None = Field(None, description="the part of a data set that has several")
    revision: str | None = Field(None, description="commit, branch or tag on the hub; left out: the newest")
    image_column: str | None = Field(None, description="column with the image; left out: the one that holds images")
    label_column: str | None = Field(None, description="column with the class; left out: the one that holds classes")
    streaming: bool = Field(
        False, description="read it from front to end while training, and keep nothing of it on this disk"
    )
    samples: int | None = Field(
        None, ge=1, description="with streaming: training images, where the data set does not say how many it has"
    )
    shuffle_buffer: int = Field(
        1000, ge=1, description="with streaming: each reader shuffles its shards, and so many images at a time"
    )


def open_hf(options: HuggingFaceOptions, data_dir: Path | None) -> DataSet:
    """Fetch the data set if it is not in the cache, and read its labels; no image is decoded.

    With `streaming`, only its description and its first rows are read.

    Raises:
        ToastError: the library is not installed, there is no such data set, or it holds no images with labels.
    """
    if options.streaming:
        return _open_stream(options, data_dir)
    folder = next((place for place in list_candidate_paths(options.path, data_dir) if place.exists()), None)
    tables = {
        SPLIT_ALIASES[name]: table for name, table in _load_splits(options, folder).items() if name in SPLIT_ALIASES
    }
    if "train" not in tables:
        raise ToastError(
            f"{options.path} has no train split.",
            what_to_do="Choose another dataset.subset.",
            code="data.no-train-split",
        )
    image, label = _find_columns(options, tables["train"])
    texts: dict[str, list[str]] = {}
    notes = []
    for part, table in tables.items():
        labels = _get_label_names(table, label)
        texts[part] = [text for text in labels if text is not None]
        unlabelled = len(labels) - len(texts[part])
        if unlabelled:
            what = f"{unlabelled:,} of {len(table):,} images have no label"
            if part == "train":
                raise ToastError(
                    f"{options.path}, train: {what}.",
                    what_to_do="Name another: dataset.label_column=NAME.",
                    code="data.unlabelled-images",
                )
            notes.append(f"{part}: not read, {what}")
            del texts[part]
    given = read_class_file(options.class_file, data_dir)
    classes = given or _get_class_names(tables["train"], label) or sort_class_names(texts["train"])
    found = {part: set(labels) for part, labels in texts.items()}
    require_known_classes(classes, found, options.path, "the class file" if given else "train")
    label_of = {name: number for number, name in enumerate(classes)}
    parts = {}
    for part, named in texts.items():
        undecoded = tables[part].cast_column(image, type(tables[part].features[image])(decode=False))
        parts[part] = _build_file_split(undecoded, image, part, tuple(label_of[text] for text in named), folder)
    notes += check_trainable_classes(parts["train"], classes, options.path, given is not None)
    if len(tables) == 1:
        made, made_notes = make_train_val_test_splits(parts["train"], options)
    else:
        made, made_notes = complete_splits(parts, options, options.path)
    return DataSet(classes, made, (*notes, *made_notes))


def _open_stream(options: HuggingFaceOptions, data_dir: Path | None) -> DataSet:
    """The data set as streams. Its own splits alone: nothing can be held out of what is read in passing."""
    folder = next((place for place in list_candidate_paths(options.path, data_dir) if place.exists()), None)
    streams = {
        SPLIT_ALIASES[name]: stream for name, stream in _load_splits(options, folder).items() if name in SPLIT_ALIASES
    }
    if "train" not in streams:
        raise ToastError(
            f"{options.path} has no train split.",
            what_to_do="Choose another dataset.subset.",
            code="data.no-train-split",
        )
    if not all(hasattr(stream, "num_shards") for stream in streams.values()):
        raise UsageError(
            f"{options.path} is on this disk as a table.",
            what_to_do="Use dataset.streaming=false.",
            code="data.not-streamable",
        )
    if options.shots is not None:
        raise UsageError(
            "dataset.shots picks images, and a stream has none to pick from.", code="data.not-with-streaming"
        )
    image, label = _find_columns(options, streams["train"])
    classes = read_class_file(options.class_file, data_dir) or _get_class_names(streams["train"], label)
    if not classes:
        raise UsageError(
            f"{options.path} does not say which classes its column '{label}' has.",
            what_to_do="Name them in a dataset.class_file, or use dataset.streaming=false.",
            code="data.unknown-class-names",
        )
    splits, notes = {}, ["no hash is recorded of the splits: nothing lists the images of a stream of the hub"]
    for part, stream in streams.items():
        plain = stream.select_columns([image, label]).cast_column(image, type(stream.features[image])(decode=False))
        if part != "train" and next(iter(plain))[label] in (None, -1):
            notes.append(f"{part}: not read, its images have no label")
            continue
        known = (stream.info.splits or {}).get(stream.split)
        length = options.samples if part == "train" and options.samples else known and known.num_examples
        if not length and part == "train":
            raise UsageError(
                f"{options.path} does not say how many images its train split has.",
                what_to_do="Say dataset.samples=NUMBER, or use dataset.streaming=false.",
                code="data.unknown-length",
            )
        length = length or sum(1 for _ in stream.select_columns([label]))
        where = f"{options.path} ({part})"
        numbered = tuple(getattr(stream.features[label], "names", ()))
        splits[part] = StreamSplit(
            plain, image, label, classes, length, where, shuffle_buffer=options.shuffle_buffer, numbered=numbered
        )
    if "val" not in splits:
        notes.append(f"validation: {options.path} has no such split, and none can be held out of a stream")
    return DataSet(classes, splits, tuple(notes))


SOURCE = DataSource(
    HuggingFaceOptions,
    open_hf,
    "a data set of images on the Hugging Face hub, fetched once, or a local folder: hf:NAME "
    '(pip install "datasets>=4.4")',
    home="https://huggingface.co/datasets",
)


@dataclass(frozen=True)
class TableImages:
    """The images that are stored in a table, as the root of a `FileSplit`: names end in the number of the row."""

    table: Any
    column: str

    def __truediv__(self, name: str) -> TableImage:
        return TableImage(self, name)


@dataclass(frozen=True)
class TableImage:
    """One image of a table, as `open_image` takes it."""

    rows: TableImages
    name: str

    def __str__(self) -> str:
        return self.name

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Its bytes."""
        cell = self.rows.table[int(self.name.rpartition("/")[2])][self.rows.column]
        return open_file(Path(cell["path"])) if cell["bytes"] is None else BytesIO(cell["bytes"])


def _build_file_split(table: Any, column: str, part: str, labels: tuple[int, ...], folder: Path | None) -> FileSplit:
    """The images of a split: files below the local folder where it holds such, else what the table stores."""
    if folder is not None and len(table) and table[0][column]["bytes"] is None:
        # The library follows links in the folder's own path, and none below it.
        paths, real = [Path(row[column]["path"]) for row in table.select_columns([column])], folder.resolve()
        if all(path.is_relative_to(real) for path in paths):
            names = (path.relative_to(real).as_posix() for path in paths)
            images = sorted(zip(labels, names, strict=True))  # the order of `folder`
            return FileSplit(folder, tuple(name for _, name in images), tuple(label for label, _ in images))
    return FileSplit(TableImages(table, column), tuple(f"{part}/{number:07d}" for number in range(len(table))), labels)


def _get_label_names(table: Any, column: str) -> list[str | None]:
    """Every image's label by name. A class feature stores numbers; any other column holds the labels themselves."""
    names = getattr(table.features[column], "names", None)
    values = table[column][:]
    if names is None:
        return [None if value is None else str(value) for value in values]
    return [None if value is None or value < 0 else names[value] for value in values]


def _get_class_names(table: Any, column: str) -> tuple[str, ...]:
    """The classes that a column names, in its order; if they are merely sorted, in that of every other source."""
    names = tuple(getattr(table.features[column], "names", None) or ())
    return sort_class_names(names) if list(names) == sorted(names) else names


def _find_columns(options: HuggingFaceOptions, table: Any) -> tuple[str, str]:
    """The columns with image and label: those that were named, else the only ones of their kind.

    Raises:
        ToastError: there is none, or there are several.
    """
    from datasets import ClassLabel, Image

    chosen = []
    for what, given, kind in (("image", options.image_column, Image), ("label", options.label_column, ClassLabel)):
        fitting = [name for name, feature in table.features.items() if isinstance(feature, kind)]
        if given is None and what == "label" and not fitting and "label" in table.features:
            fitting = ["label"]
        if given is not None:
            fitting = [name for name in table.features if name == given]
        if len(fitting) != 1:
            raise ToastError(
                f"{options.path} has no column '{given}'."
                if given is not None
                else f"{options.path} has {len(fitting) or 'no'} columns that may hold the {what}.",
                f"Its columns are {', '.join(table.features)}.",
                f"Name one: dataset.{what}_column=NAME.",
                code="data.missing-column" if given is not None else "data.ambiguous-column",
            )
        chosen += fitting
    return chosen[0], chosen[1]


def _load_splits(options: HuggingFaceOptions, folder: Path | None) -> Mapping[str, Any]:
    """The splits of the data set as the library's tables, images left as they are stored."""
    try:
        from datasets import load_dataset, load_from_disk
    except ImportError as error:
        raise ToastError(
            "Hugging Face data sets are read through the datasets library.",
            what_to_do='pip install "datasets>=4.4".',
            code="data.missing-library",
        ) from error
    try:
        if folder is not None and any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
            found = load_from_disk(str(folder))
        else:
            found = load_dataset(
                str(folder or options.path),
                options.subset,
                revision=options.revision,
                streaming=options.streaming,
            )
    except Exception as error:  # the hub's client raises anything from a timeout to a missing file
        raise ToastError(
            f"The Hugging Face data set '{options.path}' cannot be opened.",
            f"{type(error).__name__}: {error}",
            "Check the name and dataset.subset. Without a network it must be in the cache that HF_HOME names, or be a "
            "local folder.",
            code="data.cannot-open",
        ) from error
    return found if isinstance(found, Mapping) else {"train": found}
