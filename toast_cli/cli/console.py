"""The two consoles: results on stdout, everything else on stderr. rich respects NO_COLOR by itself."""

from __future__ import annotations

import json
import os
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from toast_cli.errors import ToastError

PIPED_WIDTH = 200
"""Columns of a table that no terminal shows: enough that nothing is cut before it reaches a file or grep."""

SILENT = int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0
"""Whether this is one of several processes and not the first, which speaks for all."""

out = Console(highlight=False, quiet=SILENT)
err = Console(stderr=True, highlight=False, quiet=SILENT)


def say(text: str, console: Console = out) -> None:
    """Print a text as it is: brackets are no markup, long paths and commands are not broken."""
    console.print(Text(text), soft_wrap=True)


def print_error(error: ToastError) -> None:
    """Print what went wrong, why, and what to do: plain lines, so that a path or a command can be copied whole.

    Of several processes the first speaks, unless another met an error alone.
    """
    console = Console(stderr=True, highlight=False) if error.process else err
    console.print(Text.assemble(("Error: ", "bold red"), error.what), soft_wrap=True)
    for part in (error.why, error.what_to_do):
        if part:
            say(part, console)


def print_table(table: Table) -> None:
    """Print a listing on stdout: a terminal wraps the widest column alone, so names stay whole; a pipe nothing."""
    widths = [max((len(str(cell)) for cell in column.cells), default=0) for column in table.columns]
    for column, width in zip(table.columns, widths, strict=True):
        column.no_wrap = width < max(widths)
    console = out if out.is_terminal else Console(highlight=False, width=PIPED_WIDTH)
    console.print(table)


def print_json(value: Any) -> None:
    """Print a result for machines on stdout: indented JSON, never wrapped, never coloured."""
    if not SILENT:
        print(json.dumps(value, indent=2, ensure_ascii=False))
