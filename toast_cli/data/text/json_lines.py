"""JSON files that users write: errors name the line, never the parser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toast_cli.utils.errors import ToastError


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a JSON-lines file with their line numbers, from 1; blank lines are passed over.

    Raises:
        ToastError: the file cannot be read, or a line is no UTF-8 or no JSON.
    """
    for number, line in enumerate(read_bytes_without_bom(path).split(b"\n"), start=1):
        if line.strip():
            yield number, _parse_json(line, path, number)


def read_json_list(path: Path) -> list[Any]:
    """The entries of a JSON list, or of JSON lines.

    Raises:
        ToastError: as above.
    """
    whole = read_bytes_without_bom(path)
    if whole.lstrip()[:1] == b"[":
        return list(_parse_json(whole, path, 1))
    return [value for _, value in read_json_lines(path)]


def read_bytes_without_bom(path: Path) -> bytes:
    """A file's bytes, without the mark that some editors put before UTF-8.

    Raises:
        ToastError: it cannot be read.
    """
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ToastError(
            f"{path} cannot be read.", error.strerror or str(error), code="data.unreadable-file"
        ) from error


def _parse_json(text: bytes, path: Path, first: int) -> Any:
    """The value of a text whose first line has this number."""
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        line, what = first + text.count(b"\n", 0, error.start), "is no UTF-8 text"
    except json.JSONDecodeError as error:
        line, what = first + error.lineno - 1, f"is no JSON: {error.msg[:1].lower()}{error.msg[1:]}"
    except RecursionError:
        line, what = first, "is no JSON that can be read: it is nested too deeply"
    raise ToastError(f"{path} cannot be read.", f"Line {line} {what}.", code="text.invalid-json")
