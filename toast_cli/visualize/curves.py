"""Curves of `toast eval`: deletion and insertion as JSON, tables and a figure; numbers over the feedback's strength."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from toast_cli.attention.deletion_insertion import RANDOM_ORDER, RANDOM_SIMILARITY_ORDER, DeletionInsertionCurves
from toast_cli.attention.table import format_csv, format_number
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
"""How orders are drawn that no map made."""
CURVE_DESCRIPTIONS = {
    "deletion": "area under the curve as the pixels that a map marks most become the mean colour; low is good",
    "insertion": "area under the curve as they come back into a blurred image; high is good",
    "answer": "probability of the class that the model gives the whole image, in its last pass",
}

MeanCurves = dict[str, dict[str, list[MeanEstimate]]]
PixelShares = Mapping[str, Sequence[float]]
"""By order, the share of the pixels taken after every step: coarse maps take whole cells."""


def summarize_curves(curves: DeletionInsertionCurves) -> dict[str, Any]:
    """Return the areas with their intervals, and what they are areas of, as JSON has them."""
    return {
        "images": len(curves.get_curves("pass_one", "deletion")),
        "shares_of_pixels": curves.compute_pixel_shares(),
        "meaning": CURVE_DESCRIPTIONS,
        "area": curves.result(),
        "pass_two_less_pass_one": curves.compute_area_gain(),
    }


def format_curves_csv(shares: PixelShares, means: MeanCurves) -> str:
    """Return the mean curves as a CSV: a line a step, by order the share of pixels, each mean with its interval."""
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
    """Return the area under every image's curves as a CSV: a line an image."""
    columns = {
        f"{name}/{kind}": curves.compute_areas(name, kind).tolist()
        for name, kinds in curves.curves.items()
        for kind in kinds
    }
    lines = [[name, *map(format_number, row)] for name, *row in zip(names, *columns.values(), strict=True)]
    return format_csv([["image", *columns], *lines])


def draw_deletion_insertion_curves(shares: PixelShares, means: MeanCurves) -> Figure:
    """Draw the mean curves with their intervals, deletion beside insertion."""
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


def draw_strength_sweep(lines: list[dict[str, Any]], shown: Sequence[str]) -> Figure:
    """Draw every number over the strength of the feedback, with its interval."""
    figure = Figure(figsize=(3.6 * len(shown), 3.2), layout="constrained")
    words = {"accuracy": "accuracy, %", "share_inside": "pass two on the object, %", "shift": "moved between passes, %"}
    alphas = [line["alpha"] for line in lines]
    for axis, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        found = [line[name] for line in lines]
        axis.plot(alphas, [100 * one["mean"] for one in found], marker="o", markersize=3)
        axis.fill_between(alphas, [100 * one["low"] for one in found], [100 * one["high"] for one in found], alpha=0.2)
        axis.axvline(1.0, color="grey", linewidth=0.8, linestyle="--")
        axis.set_title(words[name], fontsize=9)
        axis.set_xlabel("strength of the feedback (1: as learned)", fontsize=8)
    return figure
