"""Names that people type, made safe for terminals, Markdown, JSON and file names. Torch-free."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import count
from typing import Any

CONTROL_CHARACTERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Characters to escape: control characters, bidirectional marks, line separators, surrogates and noncharacters, which
XML forbids. Not among them are `\\n` and the tab."""
MAX_FILE_NAME_BYTES = 180
"""Longest file name made of a user's name, in bytes. File systems allow 255, which must also hold suffixes."""

_SURROGATES = re.compile(r"[\ud800-\udfff]")
_RESERVED_CHARACTERS = re.compile(r'[<>:"/\\|?*]')
_RESERVED_NAMES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)
_MARKDOWN_CHARACTERS = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|(?<!\S)#")
_MARKDOWN_LINE_START = re.compile(r"[+-](?=[\s-]|$)|[0-9]+(?=[.)](\s|$))")
_HTML_CHARACTERS = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def escape_control_characters(text: str) -> str:
    """Return the text with its control characters escaped, e.g. as `\\x1b`."""
    return CONTROL_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape_newlines(text: str) -> str:
    """Return the text with its line breaks escaped."""
    return text.replace("\n", "\\n")


def escape_markdown(text: str) -> str:
    """Return one line of Markdown that shows the text as it is: no markup, HTML, formula or table cell starts in it."""
    line = escape_newlines(escape_control_characters(text)).replace("\t", " ")
    line = _MARKDOWN_CHARACTERS.sub(lambda found: f"\\{found[0]}", line)
    start = _MARKDOWN_LINE_START.match(line.lstrip())
    if start is not None:
        digits = len(start[0]) if start[0].isdigit() else 0
        line = line.lstrip()
        line = f"{line[:digits]}\\{line[digits:]}"
    return line.translate(_HTML_CHARACTERS).strip()


def format_json(value: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """Return JSON; letters stay as they are, unless `ascii_only`. Bytes of names that are not UTF-8 are escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    return _SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def quote_argument(argument: object) -> str:
    """Return an argument of a command for a shell, on one line, quoted if necessary."""
    return shlex.quote(escape_newlines(escape_control_characters(str(argument))))


def shorten_name(name: str, longest: int) -> str:
    """Return the end of a name on one line, at most `longest` characters: the ends of file names differ."""
    line = escape_newlines(name)
    return line if len(line) <= longest else "…" + line[1 - longest :]


def to_file_name(name: str, longest: int = MAX_FILE_NAME_BYTES) -> str:
    """Return a name that every operating system accepts for a file, unchanged if it is one already.

    Characters that Windows forbids become `-`. A name with more than `longest` bytes is cut and ends in a digest.
    """
    safe = escape_control_characters(name).replace("\n", " ").replace("\t", " ")
    safe = _RESERVED_CHARACTERS.sub("-", safe).rstrip(". ") or "-"
    if _RESERVED_NAMES.match(safe):
        safe = f"_{safe}"
    if len(safe.encode()) <= longest:
        return safe
    digest = blake2b(name.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return f"{safe.encode()[: longest - len(digest) - 1].decode(errors='ignore')}-{digest}"


def to_folder_name(name: str) -> str:
    """Return a name for a folder that a shell takes without quotes: letters, digits and `-_.`, others become `-`."""
    return to_file_name("".join(each if each.isalnum() or each in "-_." else "-" for each in name))


def number_names(name: str) -> Iterator[str]:
    """Yield `name`, `name-2`, `name-3` and so on. The caller takes the first one that is free."""
    yield name
    yield from (f"{name}-{number}" for number in count(2))


def make_names_unique(names: Iterable[str]) -> list[str]:
    """Return the names, with a number after each repeated one. Names that differ only in case count as equal."""
    unique: dict[str, str] = {}
    for name in names:
        free = next(free for free in number_names(name) if free.casefold() not in unique)
        unique[free.casefold()] = free
    return list(unique.values())
