"""A file of features: a vector per image, with its path, in safetensors or Parquet, for any number of images.

Vectors are appended to a partial file, which becomes the file when all are there. A killed command loses at most its
last batch. Only the paths are held in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from toast_cli.utils.errors import ToastError, UsageError, did_you_mean
from toast_cli.utils.files import make_write_error, remove_file, write_atomically, write_text
from toast_cli.utils.names import format_json, quote_argument
from toast_cli.utils.table_files import import_pyarrow
from toast_cli.utils.version import __version__

ROWS_AT_A_TIME = 4096
"""Number of vectors in memory, which is also the size of a row group of a Parquet file."""
NUMBER = np.dtype("<f4")
METADATA_KEY = "toast"
"""Key of the record in the metadata of a file: model, pass, width, run and version."""

Chunk = tuple[Sequence[str], np.ndarray]
"""Paths of images, and their features `[n, width]`."""


@dataclass(frozen=True)
class FeatureFormat:
    """A format: how paths and chunks of features are written, and how record and chunks are read again."""

    write: Callable[[Path, str, Sequence[str], Iterable[np.ndarray], int], None]
    read_record: Callable[[Path], str | None]
    read: Callable[[Path], Iterator[Chunk]]


class FeatureFile:
    """A file of features, and the partial files that it is made from.

    Args:
        path: the file; its suffix is its format.
        model: digest of the model.
        chosen: the pass, `last` or `first`.
        width: the length of a vector.
        run: path of the run, for the record.

    Raises:
        UsageError: no format has the suffix of the path, or the path is a folder.
        ToastError: the format needs a package that is not installed.
    """

    def __init__(self, path: Path, model: str, chosen: str, width: int, run: Path) -> None:
        self.format = find_feature_format(path)
        self.path = path
        self.vectors = path.with_name(f"{path.name}.part")
        self.names = path.with_name(f"{path.name}.part.jsonl")
        self.width = width
        self._identity = {"model": model, "pass": chosen, "width": width}
        self._run = run

    def check(self, resume: bool) -> None:
        """Check that the file can be begun, without writing anything.

        Raises:
            UsageError: a partial file has vectors and `resume` is false, or they are of another model or pass.
            ToastError: the file of earlier vectors is damaged.
        """
        header, *rest = self._read_partial_lines(2)
        if rest and not resume:
            raise UsageError(
                f"{self.vectors} holds the features of a command that was interrupted.",
                what_to_do="Continue it with --resume, or remove the files: "
                f"rm {quote_argument(self.vectors)} {quote_argument(self.names)}",
                code="resume.unfinished-table",
            )
        if resume and header:
            self._check_identity(header)
        elif resume and self.path.exists():
            with self._convert_errors():
                record = self.format.read_record(self.path)
            self._check_identity(record or "{}")

    def begin(self, resume: bool) -> set[str]:
        """Start the partial files and return the paths whose features they already have, which need `resume`.

        Raises:
            UsageError: as in `check`.
            ToastError: as in `check`, or a file cannot be written.
        """
        self.check(resume)
        if resume and self.names.exists():
            return self._truncate()
        done: list[str] = []
        try:
            self.vectors.parent.mkdir(parents=True, exist_ok=True)
            with self.vectors.open("wb") as file, self._convert_errors():
                for paths, features in self.format.read(self.path) if resume and self.path.exists() else ():
                    done += paths
                    file.write(features.astype(NUMBER).tobytes())
        except OSError as error:
            raise make_write_error(self.vectors, error) from error
        write_text(self.names, "".join(format_json(line) + "\n" for line in (self._identity, *done)))
        return set(done)

    def append(self, samples: Iterable[tuple[str, np.ndarray]]) -> None:
        """Append paths and their features to the partial files.

        Raises:
            ToastError: the disk is full, or a file cannot be written.
        """
        paths, features = [], []
        for path, vector in samples:
            paths.append(format_json(path) + "\n")
            features.append(vector.astype(NUMBER).tobytes())
        try:
            with self.vectors.open("ab") as file:  # before the paths, which decide how many vectors count
                file.write(b"".join(features))
            with self.names.open("a", encoding="utf-8") as lines:
                lines.writelines(paths)
        except OSError as error:
            raise make_write_error(self.vectors, error) from error

    def finish(self, order: Mapping[str, int]) -> int:
        """Write the file, remove the partial files, and return the number of vectors.

        Args:
            order: place of each path; features of other paths come first.

        Raises:
            ToastError: a file cannot be written.
        """
        with self.names.open(encoding="utf-8") as file:
            next(file)
            names = [json.loads(line) for line in file]
        rows = sorted(range(len(names)), key=lambda row: order.get(names[row], -1))
        record = {**self._identity, "run": str(self._run), "toast_version": __version__}
        with write_atomically(self.path) as temporary:
            self.format.write(
                temporary, format_json(record), [names[row] for row in rows], self._read_vectors(rows), self.width
            )
        remove_file(self.names)
        remove_file(self.vectors)
        return len(names)

    def _read_vectors(self, rows: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the vectors of the partial file in the order of `rows`, a chunk at a time."""
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            # Mapped anew for every chunk: the pages that were read count as memory until the file is unmapped.
            stored = np.memmap(self.vectors, NUMBER, "r", shape=(len(rows), self.width))
            yield stored[rows[start : start + ROWS_AT_A_TIME]]

    def _read_partial_lines(self, count: int) -> list[str]:
        """Return the first lines of the partial file of paths; an empty one if there is none."""
        if not self.names.exists():
            return [""]
        with self.names.open(encoding="utf-8") as file:
            return [line for line in (file.readline() for _ in range(count)) if line] or [""]

    def _truncate(self) -> set[str]:
        """Remove what a killed command left half written, and return the paths of the vectors that are whole."""
        try:
            most = self.vectors.stat().st_size // (self.width * NUMBER.itemsize)
            done: list[str] = []
            with self.names.open("rb+") as file:
                end = len(file.readline())
                for line in file:
                    if len(done) == most or not line.endswith(b"\n"):
                        break
                    done.append(json.loads(line))
                    end += len(line)
                file.truncate(end)
            os.truncate(self.vectors, len(done) * self.width * NUMBER.itemsize)
        except OSError as error:
            raise make_write_error(self.vectors, error) from error
        except ValueError as error:
            raise self._make_damage_error(str(error)) from error
        return set(done)

    def _check_identity(self, text: str) -> None:
        try:
            found: dict[str, Any] = json.loads(text)
            unlike = [name for name, value in self._identity.items() if found[name] != value]
        except (ValueError, KeyError, TypeError) as error:
            raise self._make_damage_error("Nothing tells which model made them.") from error
        if unlike == ["pass"]:
            raise UsageError(
                f"Cannot resume {self.path}: it has the features of the {found['pass']} pass.",
                what_to_do=f"Give --pass {found['pass']}, or write to another file.",
                code="resume.other-settings",
            )
        if unlike:
            raise UsageError(
                f"Cannot resume {self.path}: another model made it.",
                what_to_do="Give the run that made it, or write to another file.",
                code="resume.other-model",
            )

    @contextmanager
    def _convert_errors(self) -> Iterator[None]:
        """Convert the errors of reading a damaged file."""
        try:
            yield
        except (SafetensorError, ValueError, KeyError) as error:  # pyarrow's are subclasses
            raise self._make_damage_error(str(error)) from error

    def _make_damage_error(self, why: str) -> ToastError:
        return ToastError(
            f"Cannot resume {self.path}: its features cannot be read.",
            why,
            "Start again without --resume, in another file.",
            code="resume.damaged-table",
        )


def find_feature_format(path: Path) -> FeatureFormat:
    """Return the format of a file of features by its suffix.

    Raises:
        UsageError: no format has this suffix, or the path is a folder.
        ToastError: the format needs a package that is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(
            f"Cannot write features to '{path}'.",
            f"The suffix '{suffix}' is not one of features." if suffix else "It has no suffix.",
            did_you_mean(suffix, FORMATS),
            code="cli.invalid-value",
        )
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", what_to_do="Name a file.", code="cli.invalid-value")
    if suffix == ".parquet":
        import_pyarrow()
    return FORMATS[suffix]


def _write_safetensors(path: Path, record: str, names: Sequence[str], chunks: Iterable[np.ndarray], width: int) -> None:
    """Write the tensors `features` and `paths` (a JSON list in UTF-8), chunk by chunk.

    The functions of safetensors need all data in memory. A header precedes the data: its length in 8 bytes, then JSON.
    """
    listed = format_json(list(names)).encode()
    size = len(names) * width * NUMBER.itemsize
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", METADATA_KEY: record},
        "features": {"dtype": "F32", "shape": [len(names), width], "data_offsets": [0, size]},
        "paths": {"dtype": "U8", "shape": [len(listed)], "data_offsets": [size, size + len(listed)]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file: IO[bytes]
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for chunk in chunks:
            file.write(chunk.tobytes())
        file.write(listed)


def _read_safetensors_record(path: Path) -> str | None:
    with safe_open(path, "np") as file:
        return (file.metadata() or {}).get(METADATA_KEY)


def _read_safetensors(path: Path) -> Iterator[Chunk]:
    with safe_open(path, "np") as file:
        names = json.loads(file.get_tensor("paths").tobytes())
        features = file.get_slice("features")
        for start in range(0, len(names), ROWS_AT_A_TIME):
            part = slice(start, min(start + ROWS_AT_A_TIME, len(names)))
            yield names[part], features[part]


def _write_parquet(path: Path, record: str, names: Sequence[str], chunks: Iterable[np.ndarray], width: int) -> None:
    """Write the columns `path` and `features`, a list of fixed size, with a row group per chunk."""
    pyarrow = import_pyarrow()
    fields = [("path", pyarrow.string()), ("features", pyarrow.list_(pyarrow.float32(), width))]
    schema = pyarrow.schema(fields, metadata={METADATA_KEY: record})
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        start = 0
        for chunk in chunks:
            paths = pyarrow.array(names[start : start + len(chunk)], type=pyarrow.string())
            vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(chunk.ravel()), width)
            writer.write_table(pyarrow.Table.from_arrays([paths, vectors], schema=schema))
            start += len(chunk)


def _read_parquet_record(path: Path) -> str | None:
    found = (import_pyarrow().parquet.read_schema(path).metadata or {}).get(METADATA_KEY.encode())
    return None if found is None else found.decode()


def _read_parquet(path: Path) -> Iterator[Chunk]:
    with import_pyarrow().parquet.ParquetFile(path) as file:
        for chunk in file.iter_batches(ROWS_AT_A_TIME, columns=["path", "features"]):
            vectors = chunk.column("features").flatten().to_numpy()
            yield chunk.column("path").to_pylist(), vectors.reshape(len(chunk), -1)


FORMATS = {
    ".safetensors": FeatureFormat(_write_safetensors, _read_safetensors_record, _read_safetensors),
    ".parquet": FeatureFormat(_write_parquet, _read_parquet_record, _read_parquet),
}
"""The formats by the suffix of their files."""
