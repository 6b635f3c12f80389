"""The panels of figures: both passes of one viewer (figure 4), or several viewers (figures 1 and 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from toast_cli.data.base import Sample
from toast_cli.data.images.transforms import CropWindow
from toast_cli.utils.names import shorten_name
from toast_cli.visualize.figure import MAX_HEADING_LENGTH, FigurePanel, FigureRow
from toast_cli.visualize.map_color_scales import ColorScale, build_diverging_scale, build_sequential_scale
from toast_cli.visualize.styles.captions import describe_look, get_strength
from toast_cli.visualize.view import ImageView, TopPrediction

GRAD_CAM_SCALE = ColorScale("Grad-CAM, share of its largest", "magma", 0.0, 1.0)
MAP_UNIT = "times an even map"
"""Unit of attention and feature energy, which does not depend on the grid."""


def build_passes_row(sample: Sample, view: ImageView) -> FigureRow:
    """Return a row with the image, both passes, similarity, their difference, pixel classes and Grad-CAM."""
    maps, kind, window = to_multiples_of_uniform(view.get_drawn_maps()), view.kind, view.window
    both = build_shared_scale(kind, [maps[name] for name in ("pass_one", "pass_two") if name in maps])
    label, names = get_label_name(sample, view), get_label_names(sample, view)
    panels = [FigurePanel(_join_lines("image", shorten_name(label, MAX_HEADING_LENGTH)), window)]
    two, strength, crosses = "pass_two" in maps, get_strength(view.viewer), view.get_crosses()
    pointed = view.viewer.box is not None
    heading = describe_look(kind, "pass_one", two)
    panels.append(
        FigurePanel(
            _join_lines(heading, _format_prediction(view.first, names, view)),
            window, maps["pass_one"], both, crosses=crosses,
        )
    )  # fmt: skip
    if "similarity" in maps:
        own = build_sequential_scale("similarity to ξ", "viridis", [maps["similarity"]])
        panels.append(FigurePanel("similarity to the task, ξ", window, maps["similarity"], own))
    if "pass_two" in maps:
        panels.append(
            FigurePanel(
                _join_lines(
                    describe_look(kind, "pass_two", two, strength, pointed), _format_prediction(view.last, names, view)
                ),
                window,
                maps["pass_two"],
                both,
                crosses=crosses,
            )
        )
        scale = build_diverging_scale(f"with less without TOAST, {MAP_UNIT}", "RdBu_r", [maps["difference"]])
        panels.append(FigurePanel("what changed", window, maps["difference"], scale))
    panels += [FigurePanel(name, _get_full_window(sample), segments=found) for name, found in view.segments.items()]
    for name, heading in (
        ("grad_cam_one", "Grad-CAM without TOAST" if two else "Grad-CAM"),
        ("grad_cam_two", "Grad-CAM with TOAST"),
    ):
        if name in maps:
            panels.append(FigurePanel(heading, window, maps[name], GRAD_CAM_SCALE))
    return FigureRow(sample.image, tuple(panels), sample.mask)


def build_comparison_rows(samples: Sequence[Sample], views: Sequence[Sequence[ImageView]]) -> list[FigureRow]:
    """Return a row per image and a column per viewer, with the maps of the last pass on one scale per kind of map.

    The images are those that the first viewer sees, with its class names. A viewer that labels pixels has a second
    column for them. The labelled pixels are the last column, if all images have them.
    """
    last, scales = collect_last_maps(views)
    labels = [found for row in views if (found := next(filter(None, (v.segments.get("labelled") for v in row)), None))]
    rows = []
    for number, (sample, row) in enumerate(zip(samples, views, strict=True)):
        label, names = get_label_name(sample, row[0]), get_label_names(sample, row[0])
        panels = [
            FigurePanel(
                _join_lines(shorten_name(sample.name, MAX_HEADING_LENGTH), shorten_name(label, MAX_HEADING_LENGTH)),
                row[0].window,
            )
        ]
        for view, map in zip(row, last[number], strict=True):
            verdict = _format_prediction(view.last or view.first, names, view)
            heading = _join_lines(shorten_name(view.viewer.name, MAX_HEADING_LENGTH) if number == 0 else "", verdict)
            panels.append(FigurePanel(heading, view.window, map, scales[view.kind], crosses=view.get_crosses()))
            if "predicted" in view.segments:
                panels.append(FigurePanel("predicted", _get_full_window(sample), segments=view.segments["predicted"]))
        if len(labels) == len(samples):
            panels.append(
                FigurePanel("labelled" if number == 0 else "", _get_full_window(sample), segments=labels[number])
            )
        rows.append(FigureRow(sample.image, tuple(panels), sample.mask))
    return rows


def collect_last_maps(views: Sequence[Sequence[ImageView]]) -> tuple[list[list[np.ndarray]], dict[str, ColorScale]]:
    """Return the last map of each view, and a scale for each kind of map, as attention and energy differ in meaning."""
    last = [
        [
            to_multiples_of_uniform(view.get_drawn_maps())["pass_two" if "pass_two" in view.maps else "pass_one"]
            for view in row
        ]
        for row in views
    ]
    kinds = [view.kind for view in views[0]]
    scales = {
        kind: build_shared_scale(
            kind, [map for row in last for map, other in zip(row, kinds, strict=True) if other == kind]
        )
        for kind in kinds
    }
    return last, scales


def build_shared_scale(kind: str, maps: Sequence[np.ndarray]) -> ColorScale:
    """Return one scale for all maps of a kind."""
    return build_sequential_scale(f"{kind}, {MAP_UNIT}", "inferno", maps)


def to_multiples_of_uniform(maps: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Convert attention maps and their difference to multiples of a uniform map, which is 1 in each cell.

    As shares, which sum to one, the cells of a finer map would be darker. Other maps are not converted.
    """
    shares = ("pass_one", "pass_two", "difference")
    return {name: (map * map.numel() if name in shares else map).numpy() for name, map in maps.items()}


def _get_full_window(sample: Sample) -> CropWindow:
    return CropWindow(0, 0, sample.image.width, sample.image.height)


def _join_lines(*lines: str) -> str:
    return "\n".join(line for line in lines if line)


def get_label_name(sample: Sample, view: ImageView) -> str:
    """Return the names of an image's label, or its numbers, by the viewer's classes; empty if there is none."""
    names = get_label_names(sample, view)
    return ", ".join(names or ()) if names or names is None else "no label"


def get_label_names(sample: Sample, view: ImageView) -> tuple[str, ...] | None:
    """Return the names of an image's classes or labels, or its numbers; None if the image has no label."""
    classes = view.viewer.classes
    if not classes or sample.label == -1:
        return None
    label = (sample.label,) if isinstance(sample.label, int) else sample.label
    return tuple(classes[each] if isinstance(each, int) else f"{each:.4g}" for each in label)


def is_right(verdict: TopPrediction, names: Sequence[str] | None, view: ImageView) -> bool | None:
    """Return whether a prediction agrees with the labels of its image; None if that is unknown, as for numbers."""
    if not names and (names is None or view.viewer.model.objective.target != "labels"):
        return None
    if verdict.value is not None or not set(names) <= set(view.viewer.classes or ()):
        return None
    return (verdict.label in names) == verdict.given


def _format_prediction(verdict: TopPrediction | None, names: Sequence[str] | None, view: ImageView) -> str:
    """Return a prediction as text, marked as right or wrong if the viewer has the class of the label."""
    if verdict is None:
        return ""
    mark = {None: "", True: " ✓", False: " ✗"}[is_right(verdict, names, view)]
    return f"{shorten_name(verdict.label, MAX_HEADING_LENGTH)} {verdict.format()}{mark}"
