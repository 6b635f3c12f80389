"""`table`: a CSV, TSV or Parquet file with one row per image: path, label and, optionally, split and box."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TextIO

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.class_map import check_trainable_classes, read_class_file
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.images.listed_files import find_listed_files
from toast_cli.data.images.object_masks import Box
from toast_cli.data.labelled_rows import label_rows
from toast_cli.data.labels import read_decimal_commas
from toast_cli.data.paths import find_file
from toast_cli.data.split_names import SPLITS, get_cell_split, require_known_names
from toast_cli.data.splits import TASK_BY_OPTION, TargetOptions, complete_splits, make_train_val_test_splits
from toast_cli.utils.config import LOCAL_PATH
from toast_cli.utils.errors import ToastError

BOX_CORNER_NAMES = ("xmin", "ymin", "xmax", "ymax")
"""Usual names of the columns with the corners of boxes."""

SEPARATORS_BY_SUFFIX = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
SEPARATOR_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}


class TableOptions(TargetOptions):
    """Options of a table of images, with the names of its columns."""

    name: Literal["table"] = Field("table", description="the data set")
    path: str = Field(
        min_length=1,
        examples=["labels.csv"],
        json_schema_extra=LOCAL_PATH,
        description="a .csv, .tsv or .parquet file, separated by commas, semicolons or tabs; a relative path is looked "
        "up in --data-dir, then in the current folder",
    )
    image_column: str = Field(
        "path",
        examples=["file"],
        description="column with the image's path, absolute or relative to the table's folder",
    )
    label_column: str = Field("label", examples=["species"], description="column with the class: a name or a number")
    split_column: str = Field(
        "split",
        examples=["fold"],
        description="column with train, val or test, if the table has a column of this name",
    )
    box_columns: tuple[str, str, str, str] = Field(
        ("x", "y", "width", "height"),
        examples=[["left", "top", "right", "bottom"]],
        description="columns with a box around the object in pixels of the image, if the table has them: left edge, "
        "upper edge, width, height",
    )
    box_corners: bool = Field(
        False,
        description="box_columns are two corners instead: left, upper, right and lower edge (xmin, ymin, xmax, ymax)",
    )


def open_table(options: TableOptions, data_dir: Path | None) -> DataSet:
    """Read the table, without opening any image. If the table has boxes, a sample's mask is its box.

    Raises:
        ToastError: the file does not exist, a column or an image is missing, a row is invalid, or a class has no
            training image.
    """
    file = find_file(options.path, data_dir, "table:FILE")
    separator = find_separator(file, (options.image_column, *_list_label_columns(options)))
    rows = list(_read_rows(file, separator))
    if not rows:
        raise ToastError(
            f"{file} has no rows.",
            what_to_do="Expected a header and one row per image.",
            code="data.empty-table",
        )
    columns = list(rows[0])
    _require_columns(file, columns, options)
    decimals = [] if separator == "," else _replace_decimal_commas(rows, columns, options)
    spelled: dict[str, set[str]] = {}
    parts = [_get_split(file, number, row, options, spelled) for number, row in enumerate(rows)]
    require_known_names(options.split_names, set(chain(*spelled.values())), str(file), "split")
    unused = parts.count("unused")
    used = [number for number, part in enumerate(parts) if part != "unused"]
    cells = {number: str(_get_cell(file, number, rows[number], options.image_column)) for number in used}
    found = find_listed_files(
        file.parent,
        list(cells.values()),
        lambda index: f"{file.parent / cells[used[index]]} (row {used[index] + 1})",
        f"images of {file}",
        "Give paths that are absolute or relative to the table's folder.",
    )
    _require_unique_images(file, found, used)

    named = read_class_file(options.class_file, data_dir)
    of_split = {part: [i for i, n in enumerate(used) if (parts[n] or "train") == part] for part in SPLITS}
    if not of_split["train"] and named is None:
        raise ToastError(
            f"{file} has no rows of the train split.",
            what_to_do=f"Set the split of some rows to train (column '{options.split_column}').",
            code="data.no-train-split",
        )
    read = label_rows(
        {column: [rows[number][column] for number in used] for column in _list_label_columns(options)},
        {part: indices for part, indices in of_split.items() if indices},
        options,
        str(file),
        lambda index, why, what_to_do: _make_row_error(file, used[index], why, what_to_do),
        named,
        name_empty_rows=True,
    )
    boxed = all(column in columns for column in options.box_columns)
    given = {
        part: FileSplit(
            file.parent,
            tuple(found[index] for index in indices),
            read.labels[part],
            tuple(_parse_box(file, used[index], rows[used[index]], options) for index in indices) if boxed else None,
            label_vector=read.vector,
        )
        for part, indices in read.rows.items()
    }
    train, class_notes = given.get("train"), list[str]()
    if train is not None and (read.vector is None or read.vector.target == "labels"):
        class_notes = check_trainable_classes(train, read.classes, str(file), named is not None)
    if options.split_column in columns:
        made, notes = complete_splits(given, options, str(file))
    else:
        made, notes = make_train_val_test_splits(given["train"], options)
    renamed = [
        f"'{name}' as {part}" for part, names in spelled.items() for name in sorted(names - {part, "validation"})
    ]
    split_notes = [f"{file}: read {', '.join(renamed)}"] if renamed else []
    if separator and separator != SEPARATORS_BY_SUFFIX[file.suffix.lower()]:
        split_notes.insert(0, f"{file}: its columns are separated by {SEPARATOR_NAMES[separator]}")
    if decimals:
        split_notes.append(f"{file}: read with decimal commas: {', '.join(decimals)}")
    if unused:
        split_notes.append(f"{file}: {unused:,} rows of splits that are unused, not read")
    return DataSet(
        read.classes,
        made,
        (*_describe_unread_boxes(columns, options), *split_notes, *read.notes, *class_notes, *notes),
        tuple(read.warnings),
        target="class" if read.vector is None else read.vector.target,
    )


def list_table_columns(options: TableOptions, data_dir: Path | None) -> list[str]:
    """Return the names of the columns of a table.

    Raises:
        ToastError: the file does not exist, or cannot be read.
    """
    file = find_file(options.path, data_dir, "table:FILE")
    separator = find_separator(file, (options.image_column, *_list_label_columns(options)))
    return _read_header(file, separator) if separator else list(_read_parquet(file).column_names)


SOURCE = DataSource(
    TableOptions,
    open_table,
    "a CSV, TSV or Parquet file with columns path, label, perhaps split and a box: table:FILE",
    layout=(
        "path,label,split,x,y,width,height\nimages/1.jpg,wren,train,12,30,110,80\nimages/2.jpg,robin,test,8,15,90,120"
    ),
    task_by_option=TASK_BY_OPTION,
    list_columns=list_table_columns,
)


def list_table_images(file: Path, column: str) -> list[str]:
    """Return the path of the image in every row of a table, as it is written. Labels and splits are not read.

    Raises:
        ToastError: the table cannot be read, has no such `column` of paths, or a row has no path.
    """
    paths = []
    for number, row in enumerate(_read_rows(file, find_separator(file, [column]))):
        if column not in row:
            raise ToastError(
                f"{file} has no column '{column}'.",
                f"Its columns are {', '.join(row)}.",
                "Name the column with the images' paths: dataset.image_column=NAME.",
                code="data.missing-column",
            )
        paths.append(str(_get_cell(file, number, row, column)))
    return paths


def find_separator(file: Path, columns: Sequence[str]) -> str:
    """Return the character between the cells of a table of text: a comma, a semicolon or a tab; empty for Parquet.

    The header decides, so text with commas or semicolons in a row does not matter. It is the character that yields the
    most of the named `columns`, then the most columns; between equals, the usual one of the file's suffix.

    Raises:
        ToastError: the file has another suffix, or cannot be read.
    """
    if file.suffix.lower() == ".parquet":
        return ""
    usual = SEPARATORS_BY_SUFFIX.get(file.suffix.lower())
    if usual is None:
        raise ToastError(
            f"{file} is not a CSV, TSV or Parquet file.",
            what_to_do="Give a .csv, .tsv or .parquet file.",
            code="data.unknown-table-format",
        )

    def rate(separator: str) -> tuple[int, int, bool]:
        header = _read_header(file, separator)
        return len(set(columns) & set(header)), len(header), separator == usual

    return max(SEPARATOR_NAMES, key=rate)


def _read_header(file: Path, separator: str) -> list[str]:
    with _open_text_table(file) as lines:
        return next(csv.reader(lines, delimiter=separator), [])


def _read_rows(file: Path, separator: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, by column name; `separator` is empty for Parquet."""
    if not separator:
        yield from _read_parquet(file).to_pylist()
        return
    with _open_text_table(file) as lines:
        reader = csv.DictReader(lines, delimiter=separator, strict=True)
        for number, row in enumerate(reader):
            if None in row or None in row.values():
                raise _make_row_error(
                    file,
                    number,
                    f"the number of cells differs from the number of columns ({len(reader.fieldnames or ())})",
                )
            yield row


@contextmanager
def _open_text_table(file: Path) -> Iterator[TextIO]:
    """Open a table of text.

    Raises:
        ToastError: it cannot be read, is not UTF-8, or breaks the rules of CSV.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield lines
    except UnicodeDecodeError as error:
        raise ToastError(
            f"Cannot read {file}.", "It is not UTF-8 text.", "Save it as UTF-8.", code="data.unreadable-table"
        ) from error
    except (OSError, csv.Error) as error:
        raise ToastError(f"Cannot read {file}.", str(error), code="data.unreadable-table") from error


def _read_parquet(file: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ToastError(
            "Reading Parquet files requires pyarrow.",
            what_to_do="Run: pip install pyarrow",
            code="cli.missing-package",
        ) from error
    try:
        return parquet.read_table(file)
    except (ArrowException, OSError) as error:
        raise ToastError(f"Cannot read {file} as Parquet.", str(error), code="data.unreadable-table") from error


def _get_cell(file: Path, number: int, row: Mapping[str, Any], column: str) -> Any:
    value = row[column]
    if value is None or not str(value).strip():
        raise _make_row_error(file, number, f"column '{column}' is empty")
    return value


def _get_split(
    file: Path, number: int, row: Mapping[str, Any], options: TableOptions, spelled: dict[str, set[str]]
) -> str | None:
    """Return the split of a row; None if the table has no column of splits. Add its spelling to `spelled`."""
    if options.split_column not in row:
        return None
    value = str(_get_cell(file, number, row, options.split_column)).strip()
    split = get_cell_split(value, options.split_names)
    if split is None:
        raise _make_row_error(
            file,
            number,
            f"'{value}' is not a split; expected train, val or test",
            f"Correct the row, or say what it means: dataset.split_names={{{value}: val}}.",
        )
    spelled.setdefault(split, set()).add(value)
    return split


def _parse_box(file: Path, number: int, row: Mapping[str, Any], options: TableOptions) -> Box:
    try:
        numbers = [float(row[column]) for column in options.box_columns]
    except (TypeError, ValueError):
        raise _make_row_error(
            file, number, f"the box in columns {', '.join(options.box_columns)} is not four numbers"
        ) from None
    if options.box_corners:
        left, upper, right, lower = numbers
        numbers = [left, upper, right - left, lower - upper]
    try:
        return Box(*numbers)
    except ValueError as error:
        raise _make_row_error(file, number, str(error)) from None


def _replace_decimal_commas(rows: Sequence[dict[str, Any]], columns: Sequence[str], options: TableOptions) -> list[str]:
    """Write points for the decimal commas in columns of numbers and boxes, and return the names of these columns."""
    found = []
    for column in dict.fromkeys((*options.target_columns, *options.box_columns)):
        numbers = read_decimal_commas([row[column] for row in rows]) if column in columns else None
        if numbers is not None:
            found.append(column)
            for row, number in zip(rows, numbers, strict=True):
                row[column] = number
    return found


def _list_label_columns(options: TableOptions) -> tuple[str, ...]:
    """Return the columns that labels or numbers are read from."""
    return options.target_columns or options.label_columns or (options.label_column,)


def _require_columns(file: Path, columns: list[str], options: TableOptions) -> None:
    """Check that the table has the columns of image and label, and those of split and box if they were named.

    Raises:
        ToastError: a column is missing.
    """
    needed = [options.image_column, *_list_label_columns(options)]
    fields = type(options).model_fields
    if options.split_column != fields["split_column"].default:
        needed.append(options.split_column)
    if options.box_columns != fields["box_columns"].default or options.box_corners:
        needed += options.box_columns
    for column in needed:
        if column not in columns:
            raise ToastError(
                f"{file} has no column '{column}'.",
                f"Its columns are {', '.join(columns)}.",
                "Name the column: dataset.image_column=NAME, dataset.label_column=NAME (or label_columns=[NAME,NAME], "
                "target_column=NAME), dataset.split_column=NAME, dataset.box_columns=[X,Y,WIDTH,HEIGHT].",
                code="data.missing-column",
            )


def _describe_unread_boxes(columns: list[str], options: TableOptions) -> list[str]:
    """Return a note on columns that look like boxes and are not read."""
    found = [name for name in columns if name.lower().replace("_", "") in BOX_CORNER_NAMES]
    if len(found) != len(BOX_CORNER_NAMES) or set(options.box_columns) & set(found):
        return []
    return [
        f"not read as boxes: columns {', '.join(found)}; if they are left, upper, right and lower edge, set "
        f"dataset.box_columns=[{','.join(found)}] dataset.box_corners=true"
    ]


def _require_unique_images(file: Path, names: list[str], rows: list[int]) -> None:
    """Check that no image is listed twice, so that no image can be in both training and evaluation data.

    Raises:
        ToastError: two rows have the same image.
    """
    first: dict[str, int] = {}
    for row, name in zip(rows, names, strict=True):
        before = first.setdefault(os.path.normpath(file.parent / name), row)
        if before != row:
            raise ToastError(
                f"{file} lists {name} twice, in rows {before + 1} and {row + 1}.",
                "One could be in the training data and the other in the evaluation data.",
                "Keep one row per image. Rows are counted without the header.",
                code="data.duplicate-image",
            )


def _make_row_error(file: Path, number: int, why: str, what_to_do: str = "Correct the row.") -> ToastError:
    return ToastError(
        f"{file}, row {number + 1}: {why}.",
        what_to_do=f"{what_to_do} Rows are counted without the header.",
        code="data.invalid-row",
    )
