"""Files with checksums: JSON, JSON lines, tensors, and the files of a folder.

A record without a checksum (written by an older toast or by hand) is accepted. A record with a wrong one never is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open

from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import append_json_line, require_regular_file, write_tensors, write_text
from toast_cli.utils.hashing import CHECKSUM_KEY, hash_file, hash_json
from toast_cli.utils.names import format_json

if TYPE_CHECKING:
    from torch import Tensor

FILE_CHECKSUMS_KEY = "sha256_of_files"
RUN_REPAIR_HINT = (
    "If its checkpoints are still there, restore it from them: remove the run's adapter and results.json, then run "
    "'toast tune --resume RUN'. Otherwise run it again."
)
"""What to do about damaged final files of a run."""

T = TypeVar("T")


def add_checksum(value: Mapping[str, Any], files: Iterable[Path] = ()) -> dict[str, Any]:
    """Return plain values with a checksum of them and of the given files, which belong to them."""
    assert CHECKSUM_KEY not in value, "the checksum's own name"
    digests = {file.name: hash_file(file) for file in files}
    whole = json.loads(json.dumps({**value, **({FILE_CHECKSUMS_KEY: digests} if digests else {})}))
    return {**whole, CHECKSUM_KEY: hash_json(whole)}


def verify_checksum(value: Any, folder: Path | None = None) -> Any:
    """Return plain values without their checksum after verifying it.

    Raises:
        ValueError: The checksum of the values or of a file in `folder` does not match.
        OSError: A file cannot be read.
    """
    if not isinstance(value, dict):
        return value
    digest = value.pop(CHECKSUM_KEY, None)
    if digest is not None and digest != hash_json(value):
        raise ValueError("Its SHA-256 does not match its content.")
    files = value.pop(FILE_CHECKSUMS_KEY, {})
    if not isinstance(files, dict):
        raise ValueError(f"{FILE_CHECKSUMS_KEY} is not an object.")
    if folder is not None:
        verify_files(folder, files)
    return value


def verify_files(folder: Path, digests: Mapping[str, Any]) -> None:
    """Verify the SHA-256 of files in a folder. Names that lead out of the folder are cut to their last part.

    Raises:
        ValueError: A file was changed.
        OSError: A file cannot be read.
    """
    for name, digest in digests.items():
        if hash_file(folder / Path(name).name) != digest:
            raise ValueError(f"The SHA-256 of {name} does not match.")


def parse_checksummed_json(text: str | bytes, folder: Path | None = None) -> Any:
    """Parse a JSON text and verify its checksum, see `verify_checksum`.

    Raises:
        ValueError: The text is not JSON or repeats a key, or a checksum does not match.
        OSError: A file cannot be read.
        RecursionError: The JSON is nested too deeply.
    """
    return verify_checksum(json.loads(text, object_pairs_hook=_reject_duplicate_keys), folder)


def read_checksummed_json(path: Path, what_to_do: str = RUN_REPAIR_HINT) -> dict[str, Any]:
    """Read a JSON object from a file and verify its checksum.

    Raises:
        ToastError: The file cannot be read, is not a JSON object, or has a wrong checksum.
    """
    try:
        value = parse_checksummed_json(require_regular_file(path).read_bytes())
        if not isinstance(value, dict):
            raise ValueError("It is not a JSON object.")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise ToastError(f"{path} is damaged.", str(error), what_to_do, code="run.damaged") from error


def parse_record(kind: type[T], text: str | bytes, newest_format: int, path: Path) -> T:
    """Parse a JSON text into a dataclass. If `path` is a folder, verify the record's files in it.

    Raises:
        ValueError: A checksum does not match, or a value has the wrong type.
        OSError: A file cannot be read.
        RecursionError: The JSON is nested too deeply.
        ToastError: The record has a newer format than `newest_format`.
    """
    raw = parse_checksummed_json(text, path if path.is_dir() else None)
    if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > newest_format:
        writer = f"a newer toast ({raw.get('toast_version')})"
        raise ToastError(f"{path} was written by {writer}.", what_to_do="Update toast.", code="run.newer-version")
    if isinstance(raw, dict) and (unknown := raw.keys() - {field.name for field in fields(cast(Any, kind))}):
        raise ValueError(f"Unknown field {min(unknown)}.")
    adapter: TypeAdapter[T] = TypeAdapter(kind)
    try:
        return adapter.validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def dump_checksummed_json(value: Mapping[str, Any]) -> str:
    """Return plain values with their checksum as JSON text, for the metadata of a safetensors file."""
    return format_json(add_checksum(value))


def write_checksummed_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with a checksum of the tensors in its metadata."""
    from toast_cli.utils.tensor_fingerprints import hash_tensors  # imports torch, which a list of runs does without

    write_tensors(path, tensors, {**metadata, CHECKSUM_KEY: hash_tensors(tensors)})


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        OSError: The file does not exist.
        SafetensorError: The file has another format or is damaged.
    """
    with safe_open(require_regular_file(path), framework="pt") as file:
        return file.metadata() or {}


def read_checksummed_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and tensors of a safetensors file.

    Raises:
        OSError: The file does not exist.
        SafetensorError: The file has another format or is damaged.
        ValueError: The checksum of the tensors does not match.
    """
    from toast_cli.utils.tensor_fingerprints import hash_tensors

    with safe_open(require_regular_file(path), framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get(CHECKSUM_KEY) not in (None, hash_tensors(tensors)):
        raise ValueError("The SHA-256 of its tensors does not match.")
    return metadata, tensors


def append_checksummed_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one line with its checksum to a JSON Lines file.

    Raises:
        ToastError: The file cannot be written to, or the disk is full.
    """
    append_json_line(path, add_checksum(value))


def read_checksummed_lines(path: Path, what_to_do: str) -> Iterator[dict[str, Any]]:
    """Yield the values of all lines. An unfinished last line is skipped.

    Raises:
        ToastError: Another line is damaged, or the file cannot be read. The message ends with `what_to_do`.
    """
    lines = _read_lines(path)
    for number, line in enumerate(lines, start=1):
        if (value := _parse_line(line)) is not None:
            yield value
        elif number < len(lines):  # the last item follows the last line break: it is empty or an unfinished line
            raise ToastError(
                f"{path} is damaged.", f"Line {number} has no valid content or SHA-256.", what_to_do, code="run.damaged"
            )


def drop_damaged_lines(path: Path) -> int:
    """Rewrite a file without damaged and unfinished lines. Return the number of removed lines.

    Raises:
        ToastError: The file cannot be read or written.
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
        raise ValueError("A key is given twice.")
    return value
