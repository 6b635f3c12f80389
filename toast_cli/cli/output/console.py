"""Consoles for results (stdout) and messages (stderr).

Names of files and classes, and generated text, are untrusted: control characters in them are escaped, and brackets are
not markup.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from toast_cli.cli.options import JsonOutput
from toast_cli.utils.errors import ToastError
from toast_cli.utils.names import CONTROL_CHARACTERS, escape_control_characters, escape_newlines, format_json

PIPED_WIDTH = 200
"""Width of a table that is not printed to a terminal, so that cells are not truncated."""

SILENT = int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0
"""True in all but the first of several processes. Only the first one prints."""


class SafeConsole(Console):
    """A console that escapes control characters, e.g. as `\\x1b`, and reads no markup and no `:emoji:` in texts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text with escaped characters, so that the columns of a table are as wide as what is printed."""
        encodable = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        return super().render_str(escape_control_characters(encodable), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable with escaped text. Styles and control segments are unchanged."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else escape_control_characters(text), style, control)


out = SafeConsole(quiet=SILENT)
err = SafeConsole(stderr=True, quiet=SILENT)


def print_line(text: str, console: Console = out) -> None:
    """Print one line without markup and without wrapping.

    Line breaks are escaped, so that a name cannot imitate another line of output.
    """
    console.print(Text(escape_newlines(text)), soft_wrap=True)


def print_error(error: ToastError, with_code: bool = False) -> None:
    """Print an error on stderr: the problem, its reasons, and what to do, on unwrapped lines.

    Of several processes only the first one prints, unless the error occurred in another process only.
    """
    console = SafeConsole(stderr=True) if error.process else err
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
    console = out if out.is_terminal else SafeConsole(width=PIPED_WIDTH)
    console.print(table)


def print_json(value: Any) -> None:
    """Print indented JSON on stdout, without colors or wrapping."""
    if not SILENT:
        JsonOutput.printed = True
        ascii_only = not sys.stdout.encoding.lower().startswith("utf")  # any other encoding lacks letters
        text = format_json(value, indent=2, ascii_only=ascii_only)
        print(CONTROL_CHARACTERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def print_answer(text: str, end: str = "\n") -> None:
    """Print generated text. Control characters are escaped only if stdout is a terminal."""
    print(escape_control_characters(text) if sys.stdout.isatty() else text, end=end, flush=True)
