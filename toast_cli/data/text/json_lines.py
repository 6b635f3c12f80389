"""JSON files written by users, which may be compressed. Errors name the line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from toast_cli.utils.errors import ToastError
from toast_cli.utils.text_encoding import find_file_kind, make_encoding_error


def _open_zstandard(path: Path) -> Any:
    try:
        from pyarrow import input_stream
    except ImportError as error:
        raise ToastError(
            "Files compressed with Zstandard require pyarrow.",
            what_to_do="Run: pip install pyarrow. Or decompress the file with: unzstd",
            code="cli.missing-package",
        ) from error
    return input_stream(str(path), compression="zstd")


COMPRESSED_SUFFIXES: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}
"""How a compressed file is opened, by its last suffix."""


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield line number (from 1) and value of every line of a JSON Lines file. Blank lines are skipped.

    Raises:
        ToastError: If the file cannot be read, or a line is not UTF-8 or not valid JSON.
    """
    content = read_bytes(path)
    start = 0
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield number, _parse_json(line, path, number, content, start)
        start += len(line) + 1


def read_json_list(path: Path) -> list[Any]:
    """Return the entries of a file that contains a JSON list, JSON Lines or one JSON object over several lines.

    Raises:
        ToastError: If the file cannot be read, or is not UTF-8 or not valid JSON.
    """
    content = read_bytes(path)
    if content.lstrip()[:1] == b"[":
        return list(_parse_json(content, path, 1, content))
    with suppress(ValueError, RecursionError):
        return [json.loads(content.decode())]
    return [value for _, value in read_json_lines(path)]


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, decompressed, without the byte order mark of UTF-8 that some editors add.

    Raises:
        ToastError: If the file cannot be read.
    """
    opener = COMPRESSED_SUFFIXES.get(path.suffix.lower())
    try:
        if opener is None:
            content = path.read_bytes()
        else:
            with opener(path) as file:
                content = file.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ToastError(
            f"Cannot read {path}.",
            getattr(error, "strerror", None) or str(error),
            "Check that the file is whole, and that its suffix is right." if opener else "",
            code="data.unreadable-file",
        ) from error
    return content.removeprefix(b"\xef\xbb\xbf")


def make_text_error(path: Path, content: bytes, position: int, code: str = "data.unreadable-file") -> ToastError:
    """Return the error on a file, with its decompressed content, whose byte at `position` is not UTF-8 text."""
    return make_encoding_error(path, content, position, code, path.suffix.lower() in COMPRESSED_SUFFIXES)


def require_utf8(path: Path) -> None:
    """Check that a file is UTF-8 text.

    Raises:
        ToastError: If it is not, with its probable encoding.
    """
    content = read_bytes(path)
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise make_text_error(path, content, error.start) from error
    if b"\0" in content:
        raise make_text_error(path, content, content.index(b"\0"))


def _parse_json(text: bytes, path: Path, first: int, content: bytes, start: int = 0) -> Any:
    """Parse JSON text that starts at line `first` and byte `start` of a file with this content."""
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise make_text_error(path, content, start + error.start, "text.invalid-json") from error
    except json.JSONDecodeError as error:
        line, what = first + error.lineno - 1, f"is not valid JSON: {error.msg[:1].lower()}{error.msg[1:]}"
        if b"\0" in text or find_file_kind(content):  # text in UTF-16 without a byte order mark is valid UTF-8
            raise make_text_error(path, content, start, "text.invalid-json") from error
    except RecursionError:
        line, what = first, "is not supported: the JSON is nested too deeply"
    raise ToastError(f"Cannot read {path}.", f"Line {line} {what}.", code="text.invalid-json")
