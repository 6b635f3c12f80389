"""The registered styles, and which one is drawn if none is named."""

from __future__ import annotations

from collections.abc import Sequence

from toast_cli.utils.errors import UsageError, did_you_mean
from toast_cli.visualize.styles.base import FigureStyle
from toast_cli.visualize.styles.full import FULL
from toast_cli.visualize.styles.paper import PAPER
from toast_cli.visualize.styles.simple import SIMPLE
from toast_cli.visualize.view import AttentionViewer

STYLES: dict[str, FigureStyle] = {style.name: style for style in (SIMPLE, FULL, PAPER)}
"""The styles by their names on the command line. To add one, write its module and name it here."""


def choose_style(name: str | None, viewers: Sequence[AttentionViewer]) -> FigureStyle:
    """Return a style by its name, or the default one for these viewers.

    The default is `paper` for several models. For a single one it is `simple`, unless something was asked for that only
    `full` shows: Grad-CAM, or the classes of pixels.

    Raises:
        UsageError: the style is unknown, or cannot show these viewers.
    """
    if name is None:
        if len(viewers) > 1:
            return PAPER
        (viewer,) = viewers
        return FULL if viewer.with_grad_cam or viewer.model.objective.dense else SIMPLE
    if name not in STYLES:
        raise UsageError(
            f"Invalid value for --style: '{name}'.",
            what_to_do=did_you_mean(name, list(STYLES)),
            code="cli.invalid-value",
        )
    style = STYLES[name]
    if len(viewers) > 1 and not style.several_models:
        raise UsageError(
            f"The style '{name}' shows one run.",
            what_to_do="Use --style paper, or one --run.",
            code="cli.conflicting-options",
        )
    if any(viewer.with_grad_cam for viewer in viewers) and style is not FULL:
        raise UsageError(
            f"The style '{name}' has no place for Grad-CAM.",
            what_to_do="Use --style full, or --explain attention,grad-cam.",
            code="cli.conflicting-options",
        )
    return style
