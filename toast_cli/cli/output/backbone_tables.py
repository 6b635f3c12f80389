"""Tables of backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from toast_cli.cli.output.console import print_table

PUBLISHED = {True: "yes", False: "no", None: ""}


def print_card_table(rows: Sequence[Mapping[str, Any]], further: Sequence[str]) -> None:
    """Print a table of backbones on stdout.

    Args:
        rows: The fields of cards. Missing fields give empty cells.
        further: Further columns, by field.
    """
    published = any(row.get("published") is not None for row in rows)
    columns = ["name", "family", "parameters", "image", *["weights"] * published, "licence", "from", *further]
    table = Table(*columns, box=box.SIMPLE_HEAD)
    table.columns[2].justify = "right"
    for row in rows:
        cells = [row["name"], row["family"], format_millions(row.get("parameters")), _format_size(row)]
        cells += [PUBLISHED[row.get("published")]] * published
        table.add_row(*cells, row.get("licence") or "", row["source"], *(row[field] for field in further))
    print_table(table)


def format_millions(parameters: int | None) -> str:
    """Format a parameter count, e.g. 85798656 as "85.8M". An unknown count (None) gives an empty string."""
    return "" if parameters is None else f"{parameters / 1e6:.1f}M"


def _format_size(row: Mapping[str, Any]) -> str:
    size = row.get("image_size")
    return "" if size is None else str(size) if isinstance(size, int) else "×".join(map(str, size))
