"""Tables of any length in CSV, JSON, JSON Lines or Parquet, written and read a few rows at a time.

All formats hold the same columns, so that pandas reads the same table from each of them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from toast_cli.utils.errors import ToastError, UsageError, did_you_mean
from toast_cli.utils.files import require_regular_file, write_atomically
from toast_cli.utils.formatting import format_csv, remove_formula_quote
from toast_cli.utils.names import format_json

ROWS_AT_A_TIME = 10_000
"""Number of rows in memory, which is also the size of a row group of a Parquet file."""

Cell = str | float | None
Row = Sequence[Cell]


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, and whether its cells are texts or numbers. Any cell may be None."""

    name: str
    kind: Literal["text", "number"] = "text"


@dataclass(frozen=True)
class TableFormat:
    """A format: how rows are written to a file, and how a file is read as its column names and its rows."""

    write: Callable[[Path, Sequence[Column], Iterable[Row]], None]
    read: Callable[[Path, Sequence[Column]], Iterator[Row]]


def find_table_format(path: Path) -> TableFormat:
    """Return the format of a file by its suffix.

    Raises:
        UsageError: no format has this suffix.
        ToastError: the format needs a package that is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(
            f"Cannot write a table to '{path}'.",
            f"The suffix '{suffix}' is not the suffix of a table." if suffix else "It has no suffix.",
            did_you_mean(suffix, FORMATS),
            code="cli.invalid-value",
        )
    if suffix == ".parquet":
        import_pyarrow()
    return FORMATS[suffix]


def write_table(path: Path, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    """Write a table atomically, without holding all rows in memory.

    Raises:
        UsageError: as in `find_table_format`.
        ToastError: the file cannot be written, or its format needs a package.
    """
    write = find_table_format(path).write
    with write_atomically(path) as temporary:
        write(temporary, columns, rows)


def read_table(path: Path, columns: Sequence[Column]) -> Iterator[Row]:
    """Yield the rows of a table that `write_table` wrote with the same columns.

    Raises:
        ToastError: the file cannot be read, is no such table, or has other columns.
    """
    try:
        yield from find_table_format(require_regular_file(path)).read(path, columns)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise ToastError(
            f"Cannot read the table {path}.",
            str(error),
            "Restore it from a copy, or write a new table to another file.",
            code="data.unreadable-table",
        ) from error


def _check_columns(found: Sequence[str], columns: Sequence[Column]) -> None:
    """Check that a table has the expected columns.

    Raises:
        ValueError: it has others.
    """
    expected = [column.name for column in columns]
    if list(found) != expected:
        raise ValueError(f"Its columns are {', '.join(found)}; expected {', '.join(expected)}.")


def _iterate_chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, ROWS_AT_A_TIME)):
        yield chunk


def _write_csv(path: Path, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(format_csv([[column.name for column in columns]]))
        for chunk in _iterate_chunks(rows):
            file.write(format_csv(chunk))


def _read_csv(path: Path, columns: Sequence[Column]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        _check_columns([remove_formula_quote(cell) for cell in next(reader, [])], columns)
        for cells in reader:
            yield [_parse_cell(cell, column) for cell, column in zip(cells, columns, strict=True)]


def _parse_cell(cell: str, column: Column) -> Cell:
    if not cell:
        return None
    return float(cell) if column.kind == "number" else remove_formula_quote(cell)


def _format_record(columns: Sequence[Column], row: Row) -> str:
    return format_json({column.name: cell for column, cell in zip(columns, row, strict=True)})


def _parse_record(line: str, columns: Sequence[Column]) -> Row:
    record = json.loads(line)
    _check_columns(list(record), columns)
    return list(record.values())


def _write_json_lines(path: Path, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_format_record(columns, row) + "\n" for row in rows)


def _read_json_lines(path: Path, columns: Sequence[Column]) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield _parse_record(line, columns)


def _write_json(path: Path, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    """Write a list of objects, one per line."""
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, row in enumerate(rows):
            file.write(("," if number else "") + "\n" + _format_record(columns, row))
        file.write("\n]\n")


def _read_json(path: Path, columns: Sequence[Column]) -> Iterator[Row]:
    """Read what `_write_json` wrote, line by line."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if (record := line.strip().removesuffix(",")) not in ("[", "]"):
                yield _parse_record(record, columns)


def import_pyarrow() -> Any:
    """Return pyarrow, with its module `parquet` imported.

    Raises:
        ToastError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ToastError(
            "Parquet files require pyarrow.",
            what_to_do="Run: pip install pyarrow. Or choose a file of another format.",
            code="cli.missing-package",
        ) from error
    return pyarrow


def _write_parquet(path: Path, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    """Write a row group per chunk."""
    pyarrow = import_pyarrow()
    kinds = {"text": pyarrow.string(), "number": pyarrow.float64()}
    schema = pyarrow.schema([(column.name, kinds[column.kind]) for column in columns])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for chunk in _iterate_chunks(rows):
            cells = zip(*chunk, strict=True)
            arrays = [pyarrow.array(each, type=field.type) for each, field in zip(cells, schema, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _read_parquet(path: Path, columns: Sequence[Column]) -> Iterator[Row]:
    with import_pyarrow().parquet.ParquetFile(path) as file:
        _check_columns(file.schema_arrow.names, columns)
        for chunk in file.iter_batches(ROWS_AT_A_TIME):
            yield from zip(*(column.to_pylist() for column in chunk.columns), strict=True)


FORMATS = {
    ".csv": TableFormat(_write_csv, _read_csv),
    ".json": TableFormat(_write_json, _read_json),
    ".jsonl": TableFormat(_write_json_lines, _read_json_lines),
    ".parquet": TableFormat(_write_parquet, _read_parquet),
}
"""The formats by the suffix of their files."""
