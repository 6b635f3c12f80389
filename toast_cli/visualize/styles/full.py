"""The full style: every map of one model, with scales, for people who know the method."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from toast_cli.attention.predicted_classes import format_class_shares
from toast_cli.data.base import Sample
from toast_cli.utils.names import shorten_name
from toast_cli.visualize.figure import draw_figure
from toast_cli.visualize.figure_panels import build_passes_row
from toast_cli.visualize.styles.base import FigureStyle, Views
from toast_cli.visualize.styles.captions import describe_maps, write_register_note
from toast_cli.visualize.view import ImageView

MAX_TITLE_NAME = 80
"""Largest number of characters of an image's name in a title."""


def draw_full(samples: Sequence[Sample], views: Views) -> Figure:
    """Draw a row per image: the image, pass one, similarity to xi, pass two, their difference, and Grad-CAM."""
    rows = [build_passes_row(sample, row[0]) for sample, row in zip(samples, views, strict=True)]
    if len(samples) == 1:
        title = format_title_lines(samples[0], views[0][0])
    else:
        title = [f"{views[0][0].viewer.name}: {describe_maps(views[0][0].viewer, views[0][0].kind)}"]
    return draw_figure(rows, "\n".join(title))


def format_title_lines(sample: Sample, view: ImageView) -> list[str]:
    """Return the title lines of a figure of one image: the image, the model, and the shares on the object."""
    lines = [
        f"{shorten_name(sample.name, MAX_TITLE_NAME)} · {view.viewer.name}: {describe_maps(view.viewer, view.kind)}"
    ]
    if view.viewer.plain:
        lines[0] += " · plain backbone without a run: one pass, no selection"
    lines += [f"{name}: {format_class_shares(found)}" for name, found in view.segments.items()]
    if view.shares:
        labels = {
            "pass_one": "without TOAST",
            "similarity": "similarity",
            "pass_two": "with TOAST",
            "even": "an even map",
        }
        if "pass_two" not in view.maps:
            labels["pass_one"] = ""
        inside = ", ".join(f"{labels[name]} {share:.0%}".lstrip() for name, share in view.shares.items())
        lines.append(f"{view.kind} on the outlined object: {inside}")
    if note := write_register_note(view):
        lines.append(note)
    return lines


FULL = FigureStyle(
    "full",
    "Every map of one run: without TOAST, similarity to xi, with TOAST, the difference, and Grad-CAM.",
    draw_full,
    several_models=False,
)
