"""Pages of texts that are coloured by attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from toast_cli.utils.formatting import render_template
from toast_cli.visualize.map_color_scales import ColorScale
from toast_cli.visualize.styles.captions import describe_maps
from toast_cli.visualize.texts.text_figure import (
    TEXT_MAP_DESCRIPTIONS,
    ColoredText,
    TextView,
    build_text_scales,
    choose_text_color,
    format_token_name,
    get_top_tokens,
    mark_line_breaks,
)

LEGEND_STEPS = 8
"""Color steps between two numbers of a legend."""


def render_text_page(views: Sequence[TextView]) -> str:
    """Render all views as one HTML page."""
    meaning = build_text_scales(views)
    return render_template(
        "visualize/templates/text.html",
        title="Attention over the text",
        views=[_build_page_view(view, meaning) for view in views],
    )


def _format_percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _format_points(value: float) -> str:
    return f"{100 * value:+.3g}" if value else "0"


def get_value_formatter(name: str) -> Callable[[float], str]:
    """Return the number format of a map: percentage points for a difference, percent otherwise."""
    return _format_points if name == "difference" else _format_percent


def _format_value(value: float, name: str) -> str:
    """Format a value of a map with its unit."""
    return get_value_formatter(name)(value) + " points" * (name == "difference")


def describe_text_map(view: ColoredText, name: str) -> str:
    """Describe a map in words, for readers who cannot see the colors."""
    largest = (f"{token} {_format_value(value, name)}" for token, value in get_top_tokens(view, name))
    return f"Most: {', '.join(largest)}"


def format_next_token(view: TextView) -> str:
    """Return the most likely next token of each pass as a sentence."""
    first = f"Next token: {view.first.label!r} ({view.first.probability:.1%})"
    if view.last is None:
        return f"{first}."
    return f"{first} in pass one, {view.last.label!r} ({view.last.probability:.1%}) in pass two."


def _build_page_view(view: TextView, meaning: dict[str, ColorScale]) -> dict[str, Any]:
    return {
        "name": view.viewer.name,
        "described": describe_maps(view.viewer, "attention"),
        "next": format_next_token(view),
        "maps": build_page_maps(view, meaning, TEXT_MAP_DESCRIPTIONS),
    }


def build_page_maps(
    text: ColoredText, scales: Mapping[str, ColorScale], descriptions: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the maps of a text for the macro `colored_text`, in the order of their descriptions."""
    maps = []
    for name, values in ((name, text.maps[name]) for name in descriptions if name in text.maps):
        tokens = [
            {
                "text": mark_line_breaks(token),
                "name": format_token_name(text.tokens, index),
                "value": _format_value(value, name),
                "colour": colour,
                "ink": choose_text_color(colour),
            }
            for index, (token, value, colour) in enumerate(
                zip(text.tokens, values.tolist(), scales[name].to_hex(values.numpy()), strict=True)
            )
        ]
        maps.append(
            {
                "meaning": descriptions[name],
                "tokens": tokens,
                "alt": describe_text_map(text, name),
                "legend": _build_page_legend(scales[name], name),
            }
        )
    return maps


def _build_page_legend(scale: ColorScale, name: str) -> dict[str, Any]:
    """Return a legend for the page: the colors, and the numbers at both ends and in the middle."""
    words = [word for _, word in scale.get_ticks(get_value_formatter(name))]
    shown = scale.to_hex(
        [scale.low + (scale.high - scale.low) * part / LEGEND_STEPS for part in range(LEGEND_STEPS + 1)]
    )
    return {"label": scale.label, "words": words, "colours": ",".join(shown)}
