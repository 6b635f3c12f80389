"""Consoles for results (stdout) and messages (stderr).

Names of files and classes, and generated text, are untrusted, so control characters in them are escaped.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from toast_cli.cli.options import JsonOutput
from toast_cli.utils.errors import ToastError

PIPED_WIDTH = 200
"""Width of a table that is not printed to a terminal, so that cells are not truncated."""

SILENT = int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0
"""True in all but the first of several processes. Only the first one prints."""

CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters to escape: control characters, bidirectional marks, line separators and surrogates (not `\\n`)."""


class SafeConsole(Console):
    """A console that escapes control characters, e.g. as `\\x1b`."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable with escaped text. Styles and control segments are unchanged."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else escape_control_characters(text), style, control)


def escape_control_characters(text: str) -> str:
    """Return the text with its control characters escaped."""
    return CONTROL_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


out = SafeConsole(highlight=False, quiet=SILENT)
err = SafeConsole(stderr=True, highlight=False, quiet=SILENT)


def print_line(text: str, console: Console = out) -> None:
    """Print one line without markup and without wrapping.

    Line breaks are escaped, so that a name cannot imitate another line of output.
    """
    console.print(Text(escape_newlines(text)), soft_wrap=True)


def escape_newlines(text: str) -> str:
    """Return the text with its line breaks escaped."""
    return text.replace("\n", "\\n")


def print_error(error: ToastError, with_code: bool = False) -> None:
    """Print an error on stderr: the problem, its reasons, and what to do, on unwrapped lines.

    Of several processes only the first one prints, unless the error occurred in another process only.
    """
    console = SafeConsole(stderr=True, highlight=False) if error.process else err
    title = f"Error [{error.code}]: " if with_code else "Error: "
    console.print(Text.assemble((title, "bold red"), escape_newlines(error.what)), soft_wrap=True)
    for part in (*error.reasons, error.what_to_do):
        if part:
            print_line(part, console)


def print_table(table: Table) -> None:
    """Print a table on stdout. A terminal wraps only the widest column; a pipe or file wraps none."""
    widths = [max((len(str(cell)) for cell in column.cells), default=0) for column in table.columns]
    for column, width in zip(table.columns, widths, strict=True):
        column.no_wrap = width < max(widths)
    console = out if out.is_terminal else SafeConsole(highlight=False, width=PIPED_WIDTH)
    console.print(table)


def print_json(value: Any) -> None:
    """Print indented JSON on stdout, without colors or wrapping."""
    if not SILENT:
        JsonOutput.printed = True
        text = json.dumps(value, indent=2, ensure_ascii=False)
        print(CONTROL_CHARACTERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def print_answer(text: str, end: str = "\n") -> None:
    """Print generated text. Control characters are escaped only if stdout is a terminal."""
    print(escape_control_characters(text) if sys.stdout.isatty() else text, end=end, flush=True)
