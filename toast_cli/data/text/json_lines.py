"""JSON files written by users. Errors name the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from toast_cli.utils.errors import ToastError

NOT_UTF8 = "is not UTF-8 text"


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield line number (from 1) and value of every line of a JSON Lines file. Blank lines are skipped.

    Raises:
        ToastError: If the file cannot be read, or a line is not UTF-8 or not valid JSON.
    """
    for number, line in enumerate(read_bytes_without_bom(path).split(b"\n"), start=1):
        if line.strip():
            yield number, _parse_json(line, path, number)


def read_json_list(path: Path) -> list[Any]:
    """Return the entries of a file that contains a JSON list, JSON Lines or one JSON object over several lines.

    Raises:
        ToastError: If the file cannot be read, or is not UTF-8 or not valid JSON.
    """
    content = read_bytes_without_bom(path)
    if content.lstrip()[:1] == b"[":
        return list(_parse_json(content, path, 1))
    with suppress(ValueError, RecursionError):
        return [json.loads(content.decode())]
    return [value for _, value in read_json_lines(path)]


def read_bytes_without_bom(path: Path) -> bytes:
    """Return the bytes of a file without the byte order mark that some editors add.

    Raises:
        ToastError: If the file cannot be read.
    """
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ToastError(f"Cannot read {path}.", error.strerror or str(error), code="data.unreadable-file") from error


def _parse_json(text: bytes, path: Path, first: int) -> Any:
    """Parse JSON text that starts at line `first` of a file."""
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        line, what = first + text.count(b"\n", 0, error.start), NOT_UTF8
    except json.JSONDecodeError as error:
        line, what = first + error.lineno - 1, f"is not valid JSON: {error.msg[:1].lower()}{error.msg[1:]}"
    except RecursionError:
        line, what = first, "is not supported: the JSON is nested too deeply"
    # Text in UTF-16 without a byte order mark is valid UTF-8 with a null byte in every second place.
    encoded_otherwise = what == NOT_UTF8 or b"\0" in text
    raise ToastError(
        f"Cannot read {path}.",
        f"Line {line} {what}.",
        "Save it as UTF-8." if encoded_otherwise else "",
        code="text.invalid-json",
    )
