"""Self-contained HTML pages and other texts from jinja2 templates, which lie beside the code that fills them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from toast_cli.utils.version import __version__

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent.parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""Templates of this package by their path in it; of HTML, whose values are text and never markup."""


def render_template(template: str, environment: Environment = TEMPLATES, **values: Any) -> str:
    """Return a template filled in: one file that asks for no other, without a script."""
    return environment.get_template(template).render(version=__version__, **values)


def to_data_uri(png: bytes) -> str:
    """Return a PNG as the source of an image."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
