"""JSON lines with a seal each, for files that grow: what is damaged is told apart from what was not finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toast_cli.storage.checksums import add_checksum, parse_checksummed_json
from toast_cli.utils.atomic import append_json_line, write_text
from toast_cli.utils.errors import ToastError
from toast_cli.utils.regular_file import require_regular_file


def append_checksummed_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add one line with its seal.

    Raises:
        ToastError: the file cannot be written to, or the disk is full.
    """
    append_json_line(path, add_checksum(value))


def read_checksummed_lines(path: Path, what_to_do: str) -> Iterator[dict[str, Any]]:
    """The values of all lines, without their seals; a last line that was not finished is passed over.

    Raises:
        ToastError: another line is damaged, or the file cannot be read; `what_to_do` tells how to go on.
    """
    lines = _read_lines(path)
    for number, line in enumerate(lines, start=1):
        if (value := _parse_line(line)) is not None:
            yield value
        elif number < len(lines):  # the last is what stands behind the last line's end: nothing, or a line cut short
            raise ToastError(f"{path} is damaged.", f"Line {number} is not what was written.", what_to_do)


def drop_damaged_lines(path: Path) -> int:
    """Rewrite the file without lines that are damaged or were not finished; how many there were.

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
        raise ToastError(f"{path} cannot be read.", error.strerror or str(error)) from error


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_checksummed_json(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
