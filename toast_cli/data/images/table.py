"""`table`: a CSV, TSV or Parquet file with a line per image: its path, its label, perhaps its split and a box."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.class_map import check_trainable_classes, read_class_file, require_known_classes, sort_class_names
from toast_cli.data.images.file_split import FileSplit
from toast_cli.data.images.files import require_files
from toast_cli.data.images.object_masks import Box
from toast_cli.data.paths import find_file
from toast_cli.data.splits import SPLIT_ALIASES, UnsplitDataOptions, complete_splits, make_train_val_test_splits
from toast_cli.utils.errors import ToastError

BOX_CORNER_NAMES = ("xmin", "ymin", "xmax", "ymax")
"""What columns with the corners of boxes are mostly called."""

SEPARATORS_BY_SUFFIX = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


class TableOptions(UnsplitDataOptions):
    """A table of images, and what its columns are called."""

    name: Literal["table"] = Field("table", description="the data set")
    path: str = Field(
        min_length=1,
        description="a .csv, .tsv or .parquet file; a relative one is looked up in --data-dir, then in the current "
        "folder",
    )
    image_column: str = Field("path", description="column with the image's path, below the table's own folder or whole")
    label_column: str = Field("label", description="column with the class: a name or a number")
    split_column: str = Field("split", description="column with train, val or test, if there is one of this name")
    box_columns: tuple[str, str, str, str] = Field(
        ("x", "y", "width", "height"),
        description="columns with a box around the object in pixels of the image, if there are such: left, upper edge, "
        "width, height",
    )
    box_corners: bool = Field(
        False,
        description="the four are two corners instead: left, upper, right and lower edge (xmin, ymin, xmax, ymax)",
    )


def open_table(options: TableOptions, data_dir: Path | None) -> DataSet:
    """Read the table; no image is opened. A sample's mask is its box, where the table has boxes.

    Raises:
        ToastError: no such file, a column is missing, a line is odd, an image is not there, or a class cannot be
            learned.
    """
    file = find_file(options.path, data_dir, "table:FILE")
    rows = list(_read_rows(file))
    if not rows:
        raise ToastError(
            f"{file} holds no line.",
            what_to_do="Expected is a header, and a line for each image.",
            code="data.empty-table",
        )
    columns = list(rows[0])
    _require_columns(file, columns, options)
    boxed = all(column in columns for column in options.box_columns)
    names = [str(_get_cell(file, number, row, options.image_column)) for number, row in enumerate(rows)]
    texts = [str(_get_cell(file, number, row, options.label_column)) for number, row in enumerate(rows)]
    parts = [_get_split(file, number, row, options) for number, row in enumerate(rows)]
    boxes = tuple(_parse_box(file, number, row, options) for number, row in enumerate(rows)) if boxed else None
    places = [(f"{file.parent / name} (row {row})", file.parent / name) for row, name in enumerate(names, start=1)]
    require_files(places, f"images of {file}", "Paths are below the table's own folder, or whole.")
    _require_unique_images(file, names)

    found: dict[str, set[str]] = {}
    for text, part in zip(texts, parts, strict=True):
        found.setdefault(part or "train", set()).add(text)
    if "train" not in found:
        raise ToastError(f"{file} has no line of train.", what_to_do="Training needs some.", code="data.no-train-split")
    named = read_class_file(options.class_file, data_dir)
    classes = named or sort_class_names(found["train"])
    require_known_classes(classes, found, str(file), "the class file" if named else "train")
    label_of = {name: label for label, name in enumerate(classes)}
    images = FileSplit(file.parent, tuple(names), tuple(label_of[text] for text in texts), boxes)
    given: dict[str, FileSplit] = {
        part: images.take([i for i, said in enumerate(parts) if said == part])
        for part in ("train", "val", "test")
        if part in parts
    }
    unseen = check_trainable_classes(given.get("train", images), classes, str(file), named is not None)
    made, notes = complete_splits(given, options, str(file)) if given else make_train_val_test_splits(images, options)
    return DataSet(classes, made, (*_describe_unread_boxes(columns, options), *unseen, *notes))


SOURCE = DataSource(
    TableOptions, open_table, "a CSV, TSV or Parquet file with columns path, label, perhaps split and a box: table:FILE"
)


def _read_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    """The lines of a table, by column."""
    if file.suffix.lower() == ".parquet":
        yield from _read_parquet(file).to_pylist()
        return
    separator = SEPARATORS_BY_SUFFIX.get(file.suffix.lower())
    if separator is None:
        raise ToastError(
            f"{file} is of no kind that is understood.",
            what_to_do="Give a .csv, .tsv or .parquet file.",
            code="data.unknown-table-format",
        )
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, delimiter=separator, strict=True)
            for number, row in enumerate(reader):
                if None in row or None in row.values():
                    raise _row_error(
                        file, number, f"it has not as many cells as there are columns ({len(reader.fieldnames or ())})"
                    )
                yield row
    except UnicodeDecodeError as error:
        raise ToastError(
            f"{file} cannot be read.", "It is not UTF-8 text.", "Save it as UTF-8.", code="data.unreadable-table"
        ) from error
    except (OSError, csv.Error) as error:
        raise ToastError(f"{file} cannot be read.", str(error), code="data.unreadable-table") from error


def _read_parquet(file: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ToastError(
            "Parquet is read through pyarrow.", what_to_do="pip install pyarrow.", code="data.missing-library"
        ) from error
    try:
        return parquet.read_table(file)
    except (ArrowException, OSError) as error:
        raise ToastError(f"{file} cannot be read as Parquet.", str(error), code="data.unreadable-table") from error


def _get_cell(file: Path, number: int, row: Mapping[str, Any], column: str) -> Any:
    value = row[column]
    if value is None or not str(value).strip():
        raise _row_error(file, number, f"column '{column}' is empty")
    return value


def _get_split(file: Path, number: int, row: Mapping[str, Any], options: TableOptions) -> str | None:
    """The split of a line: None in a table without such a column."""
    if options.split_column not in row:
        return None
    value = str(_get_cell(file, number, row, options.split_column))
    if value.lower() not in SPLIT_ALIASES:
        raise _row_error(file, number, f"'{value}' is no split; expected train, val or test")
    return SPLIT_ALIASES[value.lower()]


def _parse_box(file: Path, number: int, row: Mapping[str, Any], options: TableOptions) -> Box:
    try:
        numbers = [float(row[column]) for column in options.box_columns]
    except (TypeError, ValueError):
        raise _row_error(file, number, f"the box {', '.join(options.box_columns)} is not four numbers") from None
    if options.box_corners:
        left, upper, right, lower = numbers
        numbers = [left, upper, right - left, lower - upper]
    try:
        return Box(*numbers)
    except ValueError as error:
        raise _row_error(file, number, str(error)) from None


def _require_columns(file: Path, columns: list[str], options: TableOptions) -> None:
    """Image and label have to be there; split and box where another name than the usual one was given.

    Raises:
        ToastError: one is not.
    """
    needed = [options.image_column, options.label_column]
    usual = type(options).model_fields
    if options.split_column != usual["split_column"].default:
        needed.append(options.split_column)
    if options.box_columns != usual["box_columns"].default or options.box_corners:
        needed += options.box_columns
    for column in needed:
        if column not in columns:
            parted = (
                " It has one column, whose name holds semicolons: save it with commas." if ";" in columns[0] else ""
            )
            raise ToastError(
                f"{file} has no column '{column}'.",
                f"It has {', '.join(columns)}.{parted}",
                "Name yours: dataset.image_column=NAME, dataset.label_column=NAME, dataset.split_column=NAME, "
                "dataset.box_columns=[X,Y,WIDTH,HEIGHT].",
                code="data.missing-column",
            )


def _describe_unread_boxes(columns: list[str], options: TableOptions) -> list[str]:
    """The sentence about columns that look like boxes and are not read."""
    found = [name for name in columns if name.lower().replace("_", "") in BOX_CORNER_NAMES]
    if len(found) != len(BOX_CORNER_NAMES) or set(options.box_columns) & set(found):
        return []
    return [
        f"not read as boxes: columns {', '.join(found)}; if they are left, upper, right and lower edge, say "
        f"dataset.box_columns=[{','.join(found)}] dataset.box_corners=true"
    ]


def _require_unique_images(file: Path, names: list[str]) -> None:
    """An image on two lines may be trained on by one and judged by the other.

    Raises:
        ToastError: one is.
    """
    first: dict[str, int] = {}
    for row, name in enumerate(names, start=1):
        before = first.setdefault(os.path.normpath(file.parent / name), row)
        if before != row:
            raise ToastError(
                f"{file} names {name} twice, in rows {before} and {row}.",
                "One of them might be trained on and the other judged by.",
                "Leave a line for each image. The header is not counted.",
                code="data.duplicate-image",
            )


def _row_error(file: Path, number: int, why: str) -> ToastError:
    return ToastError(
        f"{file}, row {number + 1}: {why}.",
        what_to_do="Mend the line. The header is not counted.",
        code="data.invalid-row",
    )
