"""Deletion and insertion curves as `toast eval --attention` leaves them: JSON, two tables, a figure."""

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
    """As JSON has it: the areas with their intervals, and what they are areas of."""
    return {
        "images": len(curves.get_curves("pass_one", "deletion")),
        "shares_of_pixels": curves.shares(),
        "meaning": CURVE_DESCRIPTIONS,
        "area": curves.result(),
        "pass_two_less_pass_one": curves.compute_area_gain(),
    }


def format_curves_csv(shares: PixelShares, means: MeanCurves) -> str:
    """The mean curves: a line a step, for every order its share of the pixels, each mean with its 95% interval."""
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
    """The area under every image's curves: a line an image."""
    columns = {
        f"{name}/{kind}": curves.areas(name, kind).tolist() for name, kinds in curves.curves.items() for kind in kinds
    }
    lines = [[name, *map(format_number, row)] for name, *row in zip(names, *columns.values(), strict=True)]
    return format_csv([["image", *columns], *lines])


def draw_deletion_insertion_curves(shares: PixelShares, means: MeanCurves) -> Figure:
    """The mean curves with their intervals, deletion beside insertion."""
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
