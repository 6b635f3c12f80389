"""The interface of a style, and the text that styles set below their panels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from matplotlib.figure import Figure

from toast_cli.data.base import Sample
from toast_cli.visualize.view import ImageView

Views = Sequence[Sequence[ImageView]]
"""The views of each image, one per model."""


@dataclass(frozen=True)
class FigureStyle:
    """A style of attention figures.

    Attributes:
        name: the name on the command line.
        description: what the figure shows, for help and documentation.
        draw: draws images with the views of every model on them.
        several_models: whether a figure can show more than one model.
    """

    name: str
    description: str
    draw: Callable[[Sequence[Sample], Views], Figure]
    several_models: bool = True


def wrap_text(text: str, width: float, size: float) -> list[str]:
    """Return the lines of a text in a font of `size` points that fit into `width` inches.

    In the default font, a character is about 0.55 times as wide as the font is high.
    """
    return wrap(text, max(int(width * 72 / (0.55 * size)), 10)) or [""]


def measure_lines(count: int, size: float) -> float:
    """Return the height of `count` lines in a font of `size` points, in inches."""
    return count * size * 1.35 / 72


def write_lines(figure: Figure, lines: Sequence[str], x: float, y: float, size: float, **how: Any) -> None:
    """Write lines at a place in inches from the lower left corner of a figure; by default, it is their upper left one.

    `how` has further settings of matplotlib's `Figure.text`.
    """
    width, height = figure.get_size_inches()
    settings = {"ha": "left", "va": "top", "linespacing": 1.2, **how}
    figure.text(x / width, y / height, "\n".join(lines), fontsize=size, **settings)
