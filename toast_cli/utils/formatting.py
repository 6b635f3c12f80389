"""Sizes and rows as text: bytes as people read them, CSV as spreadsheets do. No torch at import."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\n")
"""What a text begins with that a spreadsheet computes; a number may."""


def format_bytes(size: int) -> str:
    """Return bytes in the largest decimal unit that leaves at least one."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def format_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV. An apostrophe before a text keeps a spreadsheet from taking it for a formula."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([_quote_formula(cell) for cell in row] for row in rows)
    return file.getvalue()


def format_csv_records(records: Iterable[Mapping[str, Any]]) -> str:
    """Return mappings with the same keys as CSV with a header; empty where there are none."""
    found = list(records)
    return format_csv([found[0], *(record.values() for record in found)]) if found else ""


def _quote_formula(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    cell = cell.replace("\r\n", "\n").replace("\r", "\n")  # a line break that csv would not quote
    if not cell.startswith(FORMULA_STARTS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
