"""Top-down attention at inference: xi is set from chosen tokens of the input (an experiment, not in the paper).

In the paper, xi is trained and then fixed: the task decides what is relevant (sections 3.1 and 3.2). Here, xi is the
direction of the tokens that a user chooses. P, `A_l` and `B_l` stay as they were trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn import functional as F

from toast_cli.backbones.base import Readout
from toast_cli.steering.selection import TokenSelection
from toast_cli.steering.steering import BaseSteering
from toast_cli.utils.errors import UsageError


def compute_token_direction(first: Readout, chosen: Tensor, channel_dim: int = -1) -> Tensor:
    """Return the normalized mean direction `[B, d]` of the chosen tokens of the first pass, which can serve as xi.

    Each token is normalized before the mean, so that tokens with a large norm do not dominate.

    Args:
        first: The readout that selection compares with xi.
        chosen: True for the chosen tokens; `[B, N]` or `[B, H, W]`, as `first.compared` without its channels.
        channel_dim: Dimension of the channels of `first.compared`.

    Raises:
        UsageError: A sample has no chosen token.
    """
    compared = first.compared.movedim(channel_dim, -1)
    chosen = chosen.to(compared.device).flatten(1)
    if not bool(chosen.any(dim=1).all()):
        raise UsageError(
            "No token is selected.",
            "The selection lies outside of what the model reads.",
            "Select at least one token.",
            code="attention.empty-selection",
        )
    directions = F.normalize(compared.flatten(1, -2), dim=-1) * chosen.unsqueeze(-1)
    return F.normalize(directions.sum(dim=1), dim=-1)


@contextmanager
def replace_xi(steering: BaseSteering, xi: Tensor) -> Iterator[None]:
    """Compare tokens with another xi within the context; the trained xi is not changed. For inference.

    Args:
        steering: The steering of a TOAST model, folded or not.
        xi: The other xi: `[d]` for all samples, or `[B, d]`.

    Raises:
        UsageError: The model has no token selection (an ablation), so xi has no effect.
    """
    selection = get_token_selection(steering)
    if not selection.by_token:
        raise UsageError(
            "The model was trained without token selection, so xi has no effect.",
            what_to_do="Choose a run with method.token_selection=true, the default.",
            code="attention.no-token-selection",
        )
    before, selection.replaced_xi = selection.replaced_xi, xi.to(selection.xi)
    try:
        yield
    finally:
        selection.replaced_xi = before


def get_token_selection(steering: BaseSteering) -> TokenSelection:
    """Return the module of a steering that compares tokens with xi."""
    selection = steering.selection
    assert isinstance(selection, TokenSelection)
    return selection
