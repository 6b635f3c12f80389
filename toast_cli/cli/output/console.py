"""The two consoles: results on stdout, everything else on stderr. rich respects NO_COLOR by itself.

Names of files and classes, and what models write, are text of strangers: what would command a terminal is spelled out.
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

from toast_cli.utils.errors import ToastError

PIPED_WIDTH = 200
"""Columns of a table that no terminal shows: enough that nothing is cut before it reaches a file or grep."""

SILENT = int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0
"""Whether this is one of several processes and not the first, which speaks for all."""

CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal would obey and not show, what ends or turns a line, and what is no text; for `\\n` see `say`."""


class SafeConsole(Console):
    """A console that shows as `\\x1b` what it would otherwise obey: names of files and classes come from strangers."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The pieces of what is printed; colours and the like are apart from their texts."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else escape_control_characters(text), style, control)


def escape_control_characters(text: str) -> str:
    """The text with its control characters written out."""
    return CONTROL_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


out = SafeConsole(highlight=False, quiet=SILENT)
err = SafeConsole(stderr=True, highlight=False, quiet=SILENT)


def print_line(text: str, console: Console = out) -> None:
    """Print one line as it is: brackets are no markup, long paths and commands are not broken.

    A line break in it is that of a name, and is written out: the rest of the name could pass for a line of ours.
    """
    console.print(Text(escape_newlines(text)), soft_wrap=True)


def escape_newlines(text: str) -> str:
    """A text, perhaps with names of strangers in it, for a place where a line break would begin something of ours."""
    return text.replace("\n", "\\n")


def print_error(error: ToastError, with_code: bool = False) -> None:
    """Print what went wrong, why, and what to do: plain lines, so that a path or a command can be copied whole.

    Of several processes the first speaks, unless another met an error alone.
    """
    console = SafeConsole(stderr=True, highlight=False) if error.process else err
    title = f"Error [{error.code}]: " if with_code else "Error: "
    console.print(Text.assemble((title, "bold red"), escape_newlines(error.what)), soft_wrap=True)
    for part in (*error.reasons, error.what_to_do):
        if part:
            print_line(part, console)


def print_table(table: Table) -> None:
    """Print a listing on stdout: a terminal wraps the widest column alone, so names stay whole; a pipe nothing."""
    widths = [max((len(str(cell)) for cell in column.cells), default=0) for column in table.columns]
    for column, width in zip(table.columns, widths, strict=True):
        column.no_wrap = width < max(widths)
    console = out if out.is_terminal else SafeConsole(highlight=False, width=PIPED_WIDTH)
    console.print(table)


def print_json(value: Any) -> None:
    """Print a result for machines on stdout: indented JSON, never wrapped, never coloured."""
    if not SILENT:
        text = json.dumps(value, indent=2, ensure_ascii=False)
        print(CONTROL_CHARACTERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def print_answer(text: str, end: str = "\n") -> None:
    """Print what a model writes, as it is, but for what would command a terminal that shows it."""
    print(escape_control_characters(text) if sys.stdout.isatty() else text, end=end, flush=True)
