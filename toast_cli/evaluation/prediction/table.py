"""The table of predictions: rows are appended to a partial file, which becomes the table when all are there.

The partial file is JSON Lines whatever the format of the table is, so that a killed command loses at most its last
batch. A record beside the table names the model, so that `resume` never mixes the answers of two models.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import make_write_error, remove_file, write_atomically, write_json
from toast_cli.utils.names import format_json, quote_argument
from toast_cli.utils.table_files import Cell, Column, Row, find_table_format, read_table, write_table
from toast_cli.utils.version import __version__

FORMAT = 1
"""Version of the record and of the partial file."""
PATH, ERROR = Column("path"), Column("error")
"""The first and the last column of every table: the path of the file, and why it could not be read."""


@dataclass
class PredictionSummary:
    """What a table holds.

    Attributes:
        images: number of rows.
        labels: number of images by class, or by label.
        broken: path of every image that could not be read, and the reason.
    """

    images: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)


class PredictionTable:
    """A table of predictions, and the partial file that it is made from.

    Args:
        path: the table; its suffix is its format.
        columns: columns of the answers, between `path` and `error`.
        model: digest of the model.
        run: path of the run, for the record.
        settings: other settings that all rows of a table share.

    Raises:
        UsageError: no format has the suffix of the path, or the path is a folder.
        ToastError: the format needs a package that is not installed.
    """

    def __init__(
        self, path: Path, columns: Sequence[Column], model: str, run: Path, settings: Mapping[str, Any] | None = None
    ) -> None:
        check_table_path(path)
        self.path = path
        self.columns = (PATH, *columns, ERROR)
        self.partial = path.with_name(f"{path.name}.part")
        self.record = path.with_name(f"{path.name}.record.json")
        self._identity: dict[str, Any] = {
            "format": FORMAT,
            "model": model,
            "columns": [each.name for each in self.columns],
        }
        if settings:
            self._identity["settings"] = dict(settings)
        self.run = run

    def begin(self, resume: bool, is_current: Callable[[Row], bool] = lambda row: True) -> dict[str, Cell]:
        """Start the partial file and return the paths that it already has, with the first cell of their answers.

        With `resume`, these are the rows without an error of the partial file, or else of the table. Files that could
        not be read are tried again, and so are those whose row is not current.

        Raises:
            UsageError: a partial file has rows and `resume` is false, or the rows are of another model, or have other
                columns.
            ToastError: the rows cannot be read, or the file cannot be written.
        """
        if self._has_partial_rows() and not resume:
            raise UsageError(
                f"{self.partial} holds the rows of a command that was interrupted.",
                what_to_do=f"Continue it with --resume, or remove the file: rm {quote_argument(self.partial)}",
                code="resume.unfinished-table",
            )
        done: dict[str, Cell] = {}
        with write_atomically(self.partial) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(format_json(self._identity) + "\n")
            for row in self._read_earlier_rows() if resume else ():
                if row[-1] is None and is_current(row):
                    done[str(row[0])] = row[1]
                    file.write(format_json(row) + "\n")
        return done

    def append(self, rows: Iterable[Row]) -> None:
        """Append rows to the partial file.

        Raises:
            ToastError: the disk is full, or the file cannot be written.
        """
        try:
            with self.partial.open("a", encoding="utf-8") as file:
                file.writelines(format_json(row) + "\n" for row in rows)
        except OSError as error:
            raise make_write_error(self.partial, error) from error

    def finish(self, order: Mapping[str, int], labels: Column | None) -> PredictionSummary:
        """Write the table and its record, remove the partial file, and return what the table holds.

        Args:
            order: place of each path; rows of other paths come first.
            labels: column of the class or the labels, which are counted; None for numbers.

        Raises:
            ToastError: a file cannot be written.
        """
        summary = PredictionSummary()
        write_table(self.path, self.columns, self._count_rows(self._iterate_sorted_rows(order), labels, summary))
        counts = {"images": summary.images, "unreadable": len(summary.broken)}
        write_json(self.record, {**self._identity, "run": str(self.run), "toast_version": __version__, **counts})
        remove_file(self.partial)
        return summary

    def _has_partial_rows(self) -> bool:
        if not self.partial.exists():
            return False
        with self.partial.open("rb") as file:
            file.readline()
            return bool(file.readline())

    def _read_earlier_rows(self) -> Iterator[Row]:
        """Yield the rows of the partial file, or else of the table, if it exists.

        Raises:
            UsageError: they are of another model, or have other columns, or nothing tells which model made them.
            ToastError: they cannot be read.
        """
        if self.partial.exists():
            with self.partial.open(encoding="utf-8") as file:
                self._check_identity(file.readline())
                for line in file:
                    if line.endswith("\n"):  # the last one may be cut
                        yield self._parse_row(line)
        elif self.path.exists():
            try:
                self._check_identity(self.record.read_text(encoding="utf-8"))
            except OSError as error:
                raise UsageError(
                    f"Cannot resume {self.path}: nothing tells which model made it.",
                    f"{self.record.name} is missing.",
                    "Write a new table to another file.",
                    code="resume.other-model",
                ) from error
            yield from read_table(self.path, self.columns)

    def _check_identity(self, text: str) -> None:
        try:
            found: Any = json.loads(text)
            model, columns = found["model"], found["columns"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._make_damage_error() from error
        if model != self._identity["model"]:
            raise UsageError(
                f"Cannot resume {self.path}: another model made it.",
                what_to_do="Give the run that made it, or write a new table to another file.",
                code="resume.other-model",
            )
        if found.get("settings") != self._identity.get("settings"):
            raise UsageError(
                f"Cannot resume {self.path}: its answers were made with other settings.",
                format_json(found.get("settings")),
                "Give the same options, or write a new table to another file.",
                code="resume.other-settings",
            )
        if columns != self._identity["columns"]:
            raise UsageError(
                f"Cannot resume {self.path}: it has other columns.",
                f"Its columns are {', '.join(map(str, columns))}.",
                "Give the same --top and --probabilities, or write a new table to another file.",
                code="resume.other-columns",
            )

    def _parse_row(self, line: str) -> Row:
        try:
            row: Row = json.loads(line)
        except ValueError as error:
            raise self._make_damage_error() from error
        if not isinstance(row, list) or len(row) != len(self.columns):
            raise self._make_damage_error()
        return row

    def _make_damage_error(self) -> ToastError:
        return ToastError(
            f"Cannot resume {self.path}: the file of its rows is damaged.",
            what_to_do=f"Remove {self.partial.name} and {self.record.name}, and start again without --resume.",
            code="resume.damaged-table",
        )

    def _iterate_sorted_rows(self, order: Mapping[str, int]) -> Iterator[Row]:
        """Yield the rows of the partial file in this order. Only their places in the file are held in memory."""
        places: list[tuple[int, int]] = []
        with self.partial.open("rb") as file:
            file.readline()
            start = file.tell()
            for line in file:
                places.append((order.get(json.loads(line)[0], -1), start))
                start += len(line)
            for _, start in sorted(places):
                file.seek(start)
                yield json.loads(file.readline())

    def _count_rows(self, rows: Iterable[Row], labels: Column | None, summary: PredictionSummary) -> Iterator[Row]:
        place = None if labels is None else self.columns.index(labels)
        for row in rows:
            summary.images += 1
            if row[-1] is not None:
                summary.broken[str(row[0])] = str(row[-1])
            elif place is not None:
                summary.labels.update(str(row[place]).split(LABEL_SEPARATOR) if row[place] else ())
            yield row


LABEL_SEPARATOR = "|"
"""Separator of the labels of an image with several."""


def check_table_path(path: Path) -> None:
    """Check that a table can be written to a path.

    Raises:
        UsageError: no format has the suffix of the path, or the path is a folder.
        ToastError: the format needs a package that is not installed.
    """
    find_table_format(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", what_to_do="Name a file.", code="cli.invalid-value")
