"""Formatting: sizes, CSV, and pages rendered from jinja2 templates."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.utils.files import write_atomically
from toast_cli.utils.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\n")
"""First characters of a text that a spreadsheet would evaluate as a formula."""

CSV_ROWS = 10_000
"""Number of rows of a CSV file that are formatted at a time."""


@cache
def get_templates() -> Environment:
    """Return the HTML templates of this package, by their path in it. Values are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # most commands write no page

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {"read_script": read_script, "hash_script": hash_script}
    return templates


def read_script(name: str) -> Markup:
    """Return a script of this package, by its path in it, for a page."""
    from markupsafe import Markup

    return Markup((Path(__file__).parent.parent / name).read_text(encoding="utf-8"))


def hash_script(script: str) -> str:
    """Return the source of a script for a page's content security policy, which then allows no other script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"


def format_bytes(size: int) -> str:
    """Format a number of bytes in the largest decimal unit that gives at least one: `1.5 GB`."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def format_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Format rows as CSV. Texts that a spreadsheet would evaluate as a formula get a leading apostrophe."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([_quote_formula(cell) for cell in row] for row in rows)
    return file.getvalue()


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as a CSV file atomically, formatted a few at a time as by `format_csv`."""
    left = iter(rows)
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        while part := list(islice(left, CSV_ROWS)):
            file.write(format_csv(part))


def format_csv_records(records: Iterable[Mapping[str, Any]]) -> str:
    """Format mappings with the same keys as CSV with a header, or return an empty string if there are none."""
    rows = list(records)
    return format_csv([rows[0], *(record.values() for record in rows)]) if rows else ""


def _quote_formula(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    cell = cell.replace("\r\n", "\n").replace("\r", "\n")  # csv would not quote a bare \r
    if not cell.startswith(FORMULA_STARTS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def remove_formula_quote(cell: str) -> str:
    """Return the text of a CSV cell without the apostrophe that `format_csv` puts before formulas."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA_STARTS) else cell


def render_template(template: str, environment: Environment | None = None, **values: Any) -> str:
    """Render a template to a self-contained page.

    `environment` replaces the HTML templates of this package.
    """
    return (environment or get_templates()).get_template(template).render(version=__version__, **values)


def to_data_uri(image: bytes, kind: str = "png") -> str:
    """Return an image file of a format as a data URI."""
    return f"data:image/{kind};base64," + base64.b64encode(image).decode("ascii")


def format_duration(seconds: float) -> str:
    """Format seconds: 90 as '1 min 30 s', 7500 as '2 h 05 min', 200000 as '2 d 7 h'."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"
