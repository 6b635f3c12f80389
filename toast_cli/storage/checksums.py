"""Records that come back from files as they were written: JSON, JSON lines, tensors, and folders of files.

A record without a checksum (of an older toast, or made by hand) is taken as it is; one whose checksum is wrong never.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from torch import Tensor

from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import append_json_line, require_regular_file, write_tensors, write_text
from toast_cli.utils.hashing import CHECKSUM_KEY, hash_file, hash_json
from toast_cli.utils.tensors import hash_tensors

FILE_CHECKSUMS_KEY = "sha256_of_files"
RUN_REPAIR_HINT = (
    "Its checkpoints, if they are still there, bring it back: remove the run's adapter and results.json, then "
    "'toast tune --resume RUN'. Else make the run again."
)
"""What is to be done about what a run puts down at its end."""

T = TypeVar("T")


def add_checksum(value: Mapping[str, Any], files: Iterable[Path] = ()) -> dict[str, Any]:
    """Return plain values with a checksum of them and, if named, of files that belong to them."""
    assert CHECKSUM_KEY not in value, "the checksum's own name"
    digests = {file.name: hash_file(file) for file in files}
    whole = json.loads(json.dumps({**value, **({FILE_CHECKSUMS_KEY: digests} if digests else {})}))
    return {**whole, CHECKSUM_KEY: hash_json(whole)}


def verify_checksum(value: Any, folder: Path | None = None) -> Any:
    """Return plain values without their checksum, once it is known to be right.

    Raises:
        ValueError: they, or a file of `folder`, are not what was written.
        OSError: a file cannot be read.
    """
    if not isinstance(value, dict):
        return value
    digest = value.pop(CHECKSUM_KEY, None)
    if digest is not None and digest != hash_json(value):
        raise ValueError("what it says is not what was written, by its sha256")
    files = value.pop(FILE_CHECKSUMS_KEY, {})
    if not isinstance(files, dict):
        raise ValueError(f"{FILE_CHECKSUMS_KEY} is no object")
    if folder is not None:
        verify_files(folder, files)
    return value


def verify_files(folder: Path, digests: Mapping[str, Any]) -> None:
    """Check files of a folder by their digests; no name leads out of it.

    Raises:
        ValueError: one is not what was written.
        OSError: one cannot be read.
    """
    for name, digest in digests.items():
        if hash_file(folder / Path(name).name) != digest:
            raise ValueError(f"{name} is not what was written, by its sha256")


def parse_checksummed_json(text: str | bytes, folder: Path | None = None) -> Any:
    """Return the plain values of a JSON text, see `verify_checksum`.

    Raises:
        ValueError: it is no JSON, it names something twice, or it or a file of `folder` is not what was written.
        OSError: a file cannot be read.
        RecursionError: it is nested too deeply.
    """
    return verify_checksum(json.loads(text, object_pairs_hook=_reject_duplicate_keys), folder)


def read_checksummed_json(path: Path, what_to_do: str = RUN_REPAIR_HINT) -> dict[str, Any]:
    """Return the plain values of a file with a JSON object.

    Raises:
        ToastError: it cannot be read, is none, or its checksum is wrong.
    """
    try:
        value = parse_checksummed_json(require_regular_file(path).read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it holds no JSON object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise ToastError(f"{path} is damaged.", str(error), what_to_do, code="run.damaged") from error


def parse_record(kind: type[T], text: str | bytes, newest_format: int, path: Path) -> T:
    """Return the dataclass that a JSON text holds; where `path` is a folder, its files belong to the record.

    Raises:
        ValueError: it is not what was written, or a value is not what its field says.
        OSError: a file cannot be read.
        RecursionError: it is nested too deeply.
        ToastError: it is of a later format than the newest one known.
    """
    raw = parse_checksummed_json(text, path if path.is_dir() else None)
    if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > newest_format:
        whose = f"a newer toast ({raw.get('toast_version')})"
        raise ToastError(f"{path} was written by {whose}.", what_to_do="Update toast.", code="run.newer-version")
    if isinstance(raw, dict) and (unknown := raw.keys() - {field.name for field in fields(cast(Any, kind))}):
        raise ValueError(f"it has {min(unknown)}, which means nothing")
    adapter: TypeAdapter[T] = TypeAdapter(kind)
    try:
        return adapter.validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def dump_checksummed_json(value: Mapping[str, Any]) -> str:
    """Return plain values with their checksum as JSON text, as the metadata of a file of tensors has them."""
    return json.dumps(add_checksum(value), ensure_ascii=False)


def write_checksummed_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose metadata has a checksum of the tensors."""
    write_tensors(path, tensors, {**metadata, CHECKSUM_KEY: hash_tensors(tensors)})


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        OSError: there is no such file.
        SafetensorError: it is of another format, or damaged.
    """
    with safe_open(require_regular_file(path), framework="pt") as file:
        return file.metadata() or {}


def read_checksummed_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and tensors of a safetensors file.

    Raises:
        OSError: there is no such file.
        SafetensorError: it is of another format, or damaged.
        ValueError: the tensors are not what was written.
    """
    with safe_open(require_regular_file(path), framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get(CHECKSUM_KEY) not in (None, hash_tensors(tensors)):
        raise ValueError("its tensors are not those that were written, by their sha256")
    return metadata, tensors


def append_checksummed_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add one line with its checksum to a file of JSON lines.

    Raises:
        ToastError: the file cannot be written to, or the disk is full.
    """
    append_json_line(path, add_checksum(value))


def read_checksummed_lines(path: Path, what_to_do: str) -> Iterator[dict[str, Any]]:
    """Yield the values of all lines; a last line that was not finished is passed over.

    Raises:
        ToastError: another line is damaged, or the file cannot be read; `what_to_do` tells how to go on.
    """
    lines = _read_lines(path)
    for number, line in enumerate(lines, start=1):
        if (value := _parse_line(line)) is not None:
            yield value
        elif number < len(lines):  # the last is what stands behind the last line's end: nothing, or a line cut short
            raise ToastError(
                f"{path} is damaged.", f"Line {number} is not what was written.", what_to_do, code="run.damaged"
            )


def drop_damaged_lines(path: Path) -> int:
    """Rewrite the file without lines that are damaged or were not finished; return how many there were.

    Raises:
        ToastError: the file cannot be read or written.
    """
    if not path.is_file():
        return 0
    lines = [line for line in _read_lines(path) if line]
    whole = [line for line in lines if _parse_line(line) is not None]
    if len(whole) < len(lines):
        write_text(path, b"".join(line + b"\n" for line in whole).decode())
    return len(lines) - len(whole)


def _read_lines(path: Path) -> list[bytes]:
    try:
        return require_regular_file(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ToastError(f"{path} cannot be read.", error.strerror or str(error), code="run.unreadable-file") from error


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_checksummed_json(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a name is given twice")
    return value
