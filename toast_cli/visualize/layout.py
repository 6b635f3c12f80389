"""Which panels a figure has: one viewer's passes side by side (figure 4), or several viewers' (figures 1 and 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from toast_cli.data.base import Sample
from toast_cli.data.images.transforms import Window
from toast_cli.visualize.color_scales import Scale, around_zero, rising
from toast_cli.visualize.figure import Panel, Row
from toast_cli.visualize.view import Verdict, View

GRAD_CAM = Scale("Grad-CAM, share of its largest", "magma", 0.0, 1.0)
UNIT = "times an even map"
"""What numbers of attention and energy are in, whatever the grid."""
LONGEST = 30
"""Characters of a class name that a heading has room for."""


def passes_row(sample: Sample, view: View) -> Row:
    """The image, pass one, similarity, pass two and their difference; then what else there is."""
    maps, kind, window = times_even(view.maps), view.kind, view.window
    both = shared_scale(kind, [maps[name] for name in ("pass_one", "pass_two") if name in maps])
    label = label_of(sample, view)
    panels = [Panel(_lines("image", shortened(label)), window)]
    one = ", pass one" if "pass_two" in maps else ""  # the only pass has no number
    panels.append(Panel(_lines(kind + one, _said(view.first, label, view)), window, maps["pass_one"], both))
    if "similarity" in maps:
        own = rising("similarity to ξ", "viridis", [maps["similarity"]])
        panels.append(Panel("similarity to ξ", window, maps["similarity"], own))
    if "pass_two" in maps:
        panels.append(Panel(_lines(f"{kind}, pass two", _said(view.last, label, view)), window, maps["pass_two"], both))
        scale = around_zero(f"pass two less pass one, {UNIT}", "RdBu_r", [maps["difference"]])
        panels.append(Panel("difference", window, maps["difference"], scale))
    panels += [Panel(name, _whole(sample), segments=found) for name, found in view.segments.items()]
    for name, word in (("grad_cam_one", f"Grad-CAM{one}"), ("grad_cam_two", "Grad-CAM, pass two")):
        if name in maps:
            panels.append(Panel(word, window, maps[name], GRAD_CAM))
    return Row(sample.image, tuple(panels), sample.mask)


def viewers_rows(samples: Sequence[Sample], views: Sequence[Sequence[View]]) -> list[Row]:
    """A row an image, a column a viewer, each with the map of its last pass, all on one scale per kind of map.

    The images are the first viewer's, and labelled with its classes. A viewer that labels pixels has a second column
    for them; the labels come last, where all images have some.
    """
    last, scales = last_maps(views)
    labels = [found for row in views if (found := next(filter(None, (v.segments.get("labelled") for v in row)), None))]
    rows = []
    for number, (sample, row) in enumerate(zip(samples, views, strict=True)):
        label = label_of(sample, row[0])
        panels = [Panel(_lines(shortened(sample.name), shortened(label)), row[0].window)]
        for view, map in zip(row, last[number], strict=True):
            verdict = _said(view.last or view.first, label, view)
            heading = _lines(shortened(view.viewer.name) if number == 0 else "", verdict)
            panels.append(Panel(heading, view.window, map, scales[view.kind]))
            if "predicted" in view.segments:
                panels.append(Panel("predicted", _whole(sample), segments=view.segments["predicted"]))
        if len(labels) == len(samples):
            panels.append(Panel("labelled" if number == 0 else "", _whole(sample), segments=labels[number]))
        rows.append(Row(sample.image, tuple(panels), sample.mask))
    return rows


def last_maps(views: Sequence[Sequence[View]]) -> tuple[list[list[np.ndarray]], dict[str, Scale]]:
    """The map of every view's last pass, and one scale for each kind of map: attention and energy do not compare."""
    last = [
        [times_even(view.maps)["pass_two" if "pass_two" in view.maps else "pass_one"] for view in row] for row in views
    ]
    kinds = [view.kind for view in views[0]]
    scales = {
        kind: shared_scale(kind, [map for row in last for map, its in zip(row, kinds, strict=True) if its == kind])
        for kind in kinds
    }
    return last, scales


def shared_scale(kind: str, maps: Sequence[np.ndarray]) -> Scale:
    """One scale for all of the maps."""
    return rising(f"{kind}, {UNIT}", "inferno", maps)


def times_even(maps: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Maps that sum to one (and their difference) in multiples of an even map, which has 1 in each cell.

    A cell's share is the less the more cells there are: as shares, a finer map would be darker. Others are as they are.
    """
    shares = ("pass_one", "pass_two", "difference")
    return {name: (map * map.numel() if name in shares else map).numpy() for name, map in maps.items()}


def shortened(name: str, longest: int = LONGEST) -> str:
    """A name that fits above a panel: its end is what tells files apart."""
    return name if len(name) <= longest else "…" + name[1 - longest :]


def _whole(sample: Sample) -> Window:
    return Window(0, 0, sample.image.width, sample.image.height)


def _lines(*lines: str) -> str:
    return "\n".join(line for line in lines if line)


def label_of(sample: Sample, view: View) -> str:
    """The name of an image's label, from the viewer whose data it is of; nothing where it has none."""
    classes = view.viewer.classes
    return classes[sample.label] if classes and sample.label >= 0 else ""


def _said(verdict: Verdict | None, label: str, view: View) -> str:
    """A verdict, marked as right or wrong where the viewer could have been right: where it knows the label."""
    if verdict is None:
        return ""
    known = label in (view.viewer.classes or ())
    right = "" if not known else " ✓" if verdict.label == label else " ✗"
    return f"{shortened(verdict.label)} {verdict.probability:.0%}{right}"
