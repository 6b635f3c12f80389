"""Values as text: sizes, CSV, and pages from jinja2 templates, which lie beside the code that fills them."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from toast_cli.utils.version import __version__

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\n")
"""What a text begins with that a spreadsheet computes; a number may."""

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent.parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""Templates of this package by their path in it; of HTML, whose values are text and never markup."""


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


def render_template(template: str, environment: Environment = TEMPLATES, **values: Any) -> str:
    """Return a template filled in: one file that asks for no other, without a script."""
    return environment.get_template(template).render(version=__version__, **values)


def to_data_uri(png: bytes) -> str:
    """Return a PNG as the source of an image."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
