"""Figures as bytes. Every figure of toast is written here, so that names of users look in it as they were typed.

A `$` starts no formula, control characters are escaped, and characters that the default font lacks are drawn with
another font of the machine. If none has them, one log message per process says so.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import matplotlib.ft2font as ft2font
from matplotlib import font_manager, rc_context, rcParams
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

from toast_cli.utils.files import write_atomically
from toast_cli.utils.names import escape_control_characters

LOGGER = logging.getLogger(__name__)
UNDATED_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
"""Metadata of a format that makes its bytes reproducible."""
MAX_LISTED_WORDS = 5
"""Largest number of words that a message about fonts lists."""
REGULAR_FONT = ("normal", 400, "normal")
"""Style, weight and stretch of a regular font."""
RIGHT_TO_LEFT_RANGES = ((0x0590, 0x08FF), (0xFB1D, 0xFDFF), (0xFE70, 0xFEFF))
"""Code points of Hebrew, Arabic and related scripts."""


def render_figure(figure: Figure, kind: str, dpi: int = 130, salt: str = "toast", text_as_paths: bool = True) -> bytes:
    """Return a figure as reproducible bytes of a format: png, svg or pdf.

    `salt` distinguishes the ids of several SVG figures on one page. Without `text_as_paths`, the reader of the SVG
    chooses the fonts.
    """
    keeps_text = kind == "svg" and not text_as_paths
    file = io.BytesIO()
    with (
        warnings.catch_warnings(),
        rc_context({"svg.hashsalt": salt, "svg.fonttype": "none" if keeps_text else "path"}),
    ):
        warnings.filterwarnings("ignore", message=".*missing from font|Matplotlib currently does not support")
        show_text_as_typed(figure, report=not keeps_text)
        if kind == "svg":
            FigureCanvasSVG(figure)
        figure.savefig(file, format=kind, dpi=dpi, metadata=UNDATED_METADATA[kind])
    return file.getvalue()


def save_figure(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Write the figure in the format of the path's suffix, with reproducible bytes."""
    content = render_figure(figure, path.suffix.lstrip("."), dpi)
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def show_text_as_typed(figure: Figure, report: bool = True) -> None:
    """Let each text of a figure look as it was typed; `report` logs characters that no font has."""
    with rc_context({"text.parse_math": False}):
        for text in _list_texts(figure):
            text.set_parse_math(False)
        axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
        labels = [(axis, axis.get_ticklabels(which="both")) for axis in axes]  # creates those that are missing
    powers = {label for axis, each in labels if isinstance(axis.get_major_formatter(), LogFormatter) for label in each}
    for label in powers:
        label.set_parse_math(True)  # matplotlib writes powers of ten as formulas
    texts = [text for text in _list_texts(figure) if text not in powers]
    for text in texts:
        text.set_text(escape_control_characters(text.get_text()).replace("\t", "    "))
    families, missing = choose_fallback_families(frozenset("".join(text.get_text() for text in texts)) - {"\n"})
    if families:
        for text in texts:
            text.set_fontfamily([*rcParams["font.family"], *families])
    words = [word.strip(".,;:…") for text in texts for word in text.get_text().split()]
    if report:
        _report_once(
            "No installed font has all letters of {}: pictures show boxes for them. Install a font that has them, "
            "for example the package fonts-noto-cjk for Chinese, Japanese and Korean. JSON files and the terminal "
            "show the names in full.",
            (word for word in words if not missing.isdisjoint(word)),
        )
        if not hasattr(ft2font, "__libraqm_version__"):
            _report_once(
                "This version of matplotlib draws {} from left to right, with unconnected letters. Install "
                "matplotlib 3.11 or newer for right-to-left text in pictures.",
                (word for word in words if any(map(_is_right_to_left, word))),
            )


def _list_texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if isinstance(text, Text)]


def choose_fallback_families(characters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Return families of installed fonts that have what the default font lacks, and the characters that none has."""
    missing = characters - _read_characters(font_manager.findfont(font_manager.FontProperties()))
    families: list[str] = []
    if missing:
        known = _list_font_files()
        while missing:
            best = max(known, key=lambda family: (len(missing & _read_characters(known[family])), "Sans" in family))
            if missing.isdisjoint(_read_characters(known[best])):
                break
            missing -= _read_characters(known[best])
            families.append(best)
    return families, missing


@cache
def _list_font_files() -> dict[str, str]:
    """Return the regular file of each installed font family. Fonts that matplotlib's own list lacks are added to it."""
    manager = font_manager.fontManager
    listed = {entry.fname for entry in manager.ttflist}
    for file in sorted(set(font_manager.findSystemFonts()) - listed):  # installed after the list was cached
        try:
            manager.addfont(file)
        except Exception:  # damaged, or not a font that matplotlib can draw
            LOGGER.debug("Cannot read the font %s.", file)
    names = {entry.name for entry in manager.ttflist if (entry.style, entry.weight, entry.stretch) == REGULAR_FONT}
    names = {name for name in names if not name.lstrip(".").startswith("Last")}  # Last Resort: boxes for everything
    return {name: font_manager.findfont(font_manager.FontProperties(family=[name])) for name in sorted(names)}


@cache
def _read_characters(file: str) -> frozenset[str]:
    """Return the characters that a font has outlines for; none for a font of bitmaps or a damaged one."""
    try:
        font = font_manager.get_font(file)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def _is_right_to_left(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in RIGHT_TO_LEFT_RANGES)


_reported: set[str] = set()


def _report_once(sentence: str, words: Iterable[str]) -> None:
    """Log a sentence about the first words, if there are any, once per process."""
    found = list(dict.fromkeys(words))
    if not found or sentence in _reported:
        return
    _reported.add(sentence)
    more = f" and {len(found) - MAX_LISTED_WORDS} more words" if len(found) > MAX_LISTED_WORDS else ""
    LOGGER.warning(sentence.format(", ".join(f"'{word}'" for word in found[:MAX_LISTED_WORDS]) + more))
