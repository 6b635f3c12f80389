"""Images and texts of the HTML report of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from toast_cli.attention.map_validation import AttentionChecks
from toast_cli.data.base import Sample
from toast_cli.utils.formatting import to_data_uri
from toast_cli.visualize.figure import FigurePanel, FigureRow, draw_colorbar, draw_panel, shrink_image
from toast_cli.visualize.figure_output import render_figure
from toast_cli.visualize.figure_panels import collect_last_maps, get_label_name, get_label_names, is_right
from toast_cli.visualize.map_color_scales import ColorScale
from toast_cli.visualize.view import ImageView

PICTURE_WIDTH, PAGE_DPI = 2.2, 120
"""Width of a panel on the page, in inches, and its resolution."""


def build_report_images(
    samples: Sequence[Sample], views: Sequence[Sequence[ImageView]]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the panels of each image, with a map per viewer, and the colour bars; all with alternative texts."""
    last, scales = collect_last_maps(views)
    images = []
    names_by_scale: dict[ColorScale, dict[str, None]] = {}
    for sample, row, maps in zip(samples, views, last, strict=True):
        label, truth = get_label_name(sample, row[0]), get_label_names(sample, row[0])
        panels = [
            render_panel(
                sample, FigurePanel("", row[0].window), "image", f"The image {sample.name}" + f", {label}" * bool(label)
            )
        ]
        for view, map in zip(row, maps, strict=True):
            scale = scales[view.kind]
            names_by_scale.setdefault(scale, {})[view.viewer.name] = None
            panel = FigurePanel("", view.window, map, scale)
            panels.append(render_panel(sample, panel, view.viewer.name, *_describe_picture(sample, view, truth)))
        images.append({"name": sample.name, "label": label, "panels": panels})
    bars = []
    for scale, names in names_by_scale.items():
        runs = ", ".join(names)
        alt = f"Colours from 0 to {scale.get_ticks()[-1][1]}, dark to bright: {scale.label}, of {runs}"
        bars.append({"source": to_data_uri(render_colorbar(scale)), "runs": runs, "alt": alt})
    return images, bars


def _describe_picture(sample: Sample, view: ImageView, names: Sequence[str] | None) -> tuple[str, str, str]:
    """Return the alternative text and the caption of a panel, and whether its prediction is right or wrong."""
    verdict = view.last or view.first
    inside = view.shares.get("pass_two", view.shares.get("pass_one"))
    on_it = "" if inside is None else f", {inside:.0%} on the object"
    alt = f"{view.kind} of {view.viewer.name} over {sample.name}, in its last pass{on_it}"
    if verdict is None:
        return alt, on_it.lstrip(", "), ""
    mark = {None: "", True: "right", False: "wrong"}[is_right(verdict, names, view)]
    answer = f"{verdict.label} {verdict.format()}"
    return f"{alt}; it predicts {answer}" + f", which is {mark}" * bool(mark), answer + on_it, mark


def format_attention_checks(checks: AttentionChecks | None) -> str:
    """Return a sentence on the validation of maps, with the largest differences."""
    if checks is None:
        return "no attention, so nothing was compared"
    parts = []
    if checks.mismatch is not None:
        parts.append(f"{_format_layers(checks.fused)} against fused attention, off by at most {checks.mismatch:.1g}")
    if checks.unfused:
        parts.append(f"{_format_layers(checks.unfused)} not compared, as attention is unfused there")
    if checks.difference is not None:
        parts.append(f"layer {checks.first_block} between the passes, off by at most {checks.difference:.1g}")
    return "; ".join(parts)


def _format_layers(levels: Sequence[int]) -> str:
    return f"layer{'s' * (len(levels) > 1)} {', '.join(map(str, levels))}"


def render_panel(
    sample: Sample, panel: FigurePanel, name: str, alt: str, caption: str = "", mark: str = ""
) -> dict[str, str]:
    """Return a panel as an image with its texts, for a page."""
    figure = Figure(
        figsize=(PICTURE_WIDTH, PICTURE_WIDTH * min(max(sample.image.height / sample.image.width, 0.3), 2.5))
    )
    axis = figure.add_axes((0, 0, 1, 1))
    draw_panel(axis, FigureRow(sample.image, (panel,), sample.mask), panel, shrink_image(sample.image))
    return {
        "source": to_data_uri(render_figure(figure, "png", PAGE_DPI)),
        "name": name,
        "alt": alt,
        "said": caption,
        "mark": mark,
    }


def render_colorbar(scale: ColorScale) -> bytes:
    """Return the colour bar of a scale as PNG bytes."""
    figure = Figure(figsize=(4, 0.55), layout="constrained")
    draw_colorbar(figure, figure.subplots(), scale, 8, 2)
    return render_figure(figure, "png", PAGE_DPI)
