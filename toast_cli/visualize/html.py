"""Self-contained HTML pages: one file, no network, no script, and every name in it escaped."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from toast_cli.utils.version import __version__

TEMPLATE_FOLDER = Path(__file__).parent / "templates"


def render_template(template: str, **values: Any) -> str:
    """A template filled in; whatever a value holds is text there, never markup."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=__version__, **values)


def to_data_uri(png: bytes) -> str:
    """A PNG as the source of an image."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
