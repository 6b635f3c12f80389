"""The paper style: images as rows and models as columns (as in the paper's figure 3), for print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from toast_cli.data.base import Sample
from toast_cli.visualize.figure import draw_figure
from toast_cli.visualize.figure_panels import build_comparison_rows
from toast_cli.visualize.styles.base import FigureStyle, Views
from toast_cli.visualize.styles.captions import describe_maps
from toast_cli.visualize.view import ImageView

WITHOUT = "without TOAST"


def draw_paper(samples: Sequence[Sample], views: Views) -> Figure:
    """Draw a row per image and a column per model, on one scale, with each answer and whether it is right.

    A single model with two passes has a column for each pass.
    """
    described = dict.fromkeys(describe_maps(view.viewer, view.kind) for view in views[0])
    if len(views[0]) == 1 and "pass_two" in views[0][0].maps:
        views = [(get_first_pass(row[0]), row[0]) for row in views]
    title = f"Where each model looks{' in its last pass' * (len(views[0]) > 1)}: {'; '.join(described)}"
    if views[0][0].viewer.name == WITHOUT:
        title = f"Where the model looks: {'; '.join(described)}"
    return draw_figure(build_comparison_rows(samples, views), title)


def get_first_pass(view: ImageView) -> ImageView:
    """Return the view of the first pass alone, which is that of a model without TOAST."""
    maps = {name: view.maps[name] for name in ("pass_one",)}
    shares = {name: share for name, share in view.shares.items() if name in ("pass_one", "even")}
    return replace(view, viewer=replace(view.viewer, name=WITHOUT), maps=maps, last=None, shares=shares, segments={})


PAPER = FigureStyle("paper", "Images as rows and runs as columns, on one scale, for print.", draw_paper)
