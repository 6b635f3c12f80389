"""JSON, CSV and figures of the curves of `toast eval --attention` and `--sweep`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from toast_cli.attention.deletion_insertion import RANDOM_ORDER, RANDOM_SIMILARITY_ORDER, DeletionInsertionCurves
from toast_cli.attention.table import format_number
from toast_cli.utils.formatting import format_csv
from toast_cli.utils.statistics import MeanEstimate

ORDER_LABELS = {
    "pass_one": "pass one",
    "similarity": "similarity",
    "pass_two": "pass two",
    RANDOM_ORDER: "random order",
    RANDOM_SIMILARITY_ORDER: "random, as coarse as similarity",
}
BASELINE_STYLES = {
    RANDOM_ORDER: {"color": "grey", "linestyle": "--"},
    RANDOM_SIMILARITY_ORDER: {"color": "grey", "linestyle": ":"},
}
"""Line styles of the random orders."""
CURVE_DESCRIPTIONS = {
    "deletion": "area under the curve as the highest pixels of the map become the mean colour; lower is better",
    "insertion": "area under the curve as the highest pixels of the map are added to a blurred image; higher is better",
    "answer": "probability of the class that the model predicts for the original image, in its last pass",
}
SWEEP_LABELS = {
    "accuracy": "accuracy",
    "f1_per_image": "F1 per image",
    "share_inside": "pass two on the object",
    "shift": "moved between passes",
    "loss": "loss per text",
    "loss_change": "minus that of the plain model",
}
"""Headings of the metrics of a sweep."""
LOSSES = ("loss", "loss_change")
"""Metrics of a sweep that are no shares."""

MeanCurves = dict[str, dict[str, list[MeanEstimate]]]
PixelShares = Mapping[str, Sequence[float]]
"""By order, the share of pixels taken after each step. Orders differ, because maps are taken in whole cells."""


def summarize_curves(curves: DeletionInsertionCurves) -> dict[str, Any]:
    """Return the areas with their intervals and descriptions, for a JSON record."""
    return {
        "images": len(curves.get_curves("pass_one", "deletion")),
        "shares_of_pixels": curves.compute_pixel_shares(),
        "meaning": CURVE_DESCRIPTIONS,
        "area": curves.result(),
        "pass_two_less_pass_one": curves.compute_area_gain(),
    }


def format_curves_csv(shares: PixelShares, means: MeanCurves) -> str:
    """Return the mean curves as CSV: a line per step, with the share of pixels and each mean with its interval."""
    columns: dict[str, list[float]] = {}
    for name, kinds in means.items():
        columns[f"{name}/share_of_pixels"] = list(shares[name])
        for kind, curve in kinds.items():
            for end, part in (("mean", ""), ("low", "_low"), ("high", "_high")):
                columns[f"{name}/{kind}{part}"] = [getattr(mean, end) for mean in curve]
    return format_csv(
        [list(columns), *([format_number(value) for value in step] for step in zip(*columns.values(), strict=True))]
    )


def format_areas_csv(curves: DeletionInsertionCurves, names: Iterable[str]) -> str:
    """Return the areas under the curves as CSV: a line per image."""
    columns = {
        f"{name}/{kind}": curves.compute_areas(name, kind).tolist()
        for name, kinds in curves.curves.items()
        for kind in kinds
    }
    lines = [[name, *map(format_number, row)] for name, *row in zip(names, *columns.values(), strict=True)]
    return format_csv([["image", *columns], *lines])


def draw_deletion_insertion_curves(shares: PixelShares, means: MeanCurves) -> Figure:
    """Draw the mean deletion and insertion curves with their intervals."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for axis, kind in zip(figure.subplots(1, 2, sharey=True), ("deletion", "insertion"), strict=True):
        for name, kinds in means.items():
            style = BASELINE_STYLES.get(name, {})
            (line,) = axis.plot(shares[name], [mean.mean for mean in kinds[kind]], label=ORDER_LABELS[name], **style)
            low, high = ([getattr(mean, end) for mean in kinds[kind]] for end in ("low", "high"))
            axis.fill_between(shares[name], low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        axis.set_title(f"{kind} of what the map marks most", fontsize=9)
        axis.set_xlabel("share of the pixels", fontsize=8)
    axis.legend(fontsize=8)
    count = next(mean.images for kinds in means.values() for curve in kinds.values() for mean in curve)
    figure.supylabel(f"probability of the answer\nmean of {count} images, 95%", fontsize=8)
    return figure


def format_sweep_csv(points: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> str:
    """Return a sweep as CSV: a line per feedback strength, with the mean and 95% interval of each metric."""
    header = ["alpha", *(f"{name}{part}" for name in measures for part in ("", "_low", "_high"))]
    rows = [
        [point["alpha"], *(format_number(point[name][part]) for name in measures for part in ("mean", "low", "high"))]
        for point in points
    ]
    return format_csv([header, *rows])


def draw_sweep(points: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> Figure:
    """Draw each metric against the feedback strength, with its interval."""
    figure = Figure(figsize=(3.6 * len(measures), 3.2), layout="constrained")
    alphas = [point["alpha"] for point in points]
    for axis, name in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        scale, unit = (1, "") if name in LOSSES else (100, ", %")
        mean, low, high = ([scale * point[name][part] for point in points] for part in ("mean", "low", "high"))
        axis.plot(alphas, mean, marker="o", markersize=3)
        axis.fill_between(alphas, low, high, alpha=0.2)
        axis.axvline(1.0, color="grey", linewidth=0.8, linestyle="--")
        axis.set_title(f"{SWEEP_LABELS[name]}{unit}", fontsize=9)
        axis.set_xlabel("strength of the feedback (1: as learned)", fontsize=8)
    return figure
