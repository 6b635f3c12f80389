"""Steering strength: how a model looks when the signals between its passes are weaker or stronger than it learned."""

from __future__ import annotations

from toast_cli.model.model import Model
from toast_cli.utils.errors import UsageError


def set_feedback_strength(model: Model, alpha: float | None) -> None:
    """Have a model send its signals `alpha` times as strong; None leaves it alone.

    Raises:
        UsageError: it has no feedback path to be scaled.
    """
    if alpha is None:
        return
    if model.adapted.steering is None:
        raise UsageError("--alpha scales the feedback, and this model has none.", what_to_do="Leave --alpha out.")
    model.adapted.steering.strength = alpha
