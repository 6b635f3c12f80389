"""Composing: what a signal goes through on its way to a level, as one matrix (not in the paper; it follows from 3.1).

From the last level to the first everything is linear: `X_td,l = B_l A_l A_{l+1} ... A_L s`, and where the signal enters
at the values, `W_V X_td,l` is what arrives. So level l needs `W_V,l B_l A_l ... A_L` and no more. Inference keeps these
matrices in place of the path (`folding`). Training composes them anew in each step where that costs less, and without
W_V: there a level's own projection takes tokens and signal together for the price of the tokens. Only where values are
few (grouped-query attention) is it cheaper to go all the way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from toast_cli.backbones.base import Backbone
from toast_cli.steering.feedback import Deconvolution, FeedbackPath, compute_effective_weight, get_base_weight

MIN_TOKENS_PER_CHANNEL = 1.5
"""Tokens per channel from which composing costs less: by FLOPs, both ways of a training step cost the same here."""

HALF_PRECISION_SPEEDUP = 16
"""How often as fast an accelerator takes products in half precision, where tokens go their way, as in float32, in
which matrices are composed: by its makers' figures (H100: 990 against 67 TFLOP/s), not measured."""


def compose_feedback(
    feedback: FeedbackPath,
    backbone: Backbone,
    levels: range,
    P: Tensor | None,
    dtype: torch.dtype,
    *,
    to_values: bool = True,
) -> list[Tensor]:
    """For every steered level, first level first, the matrix `[C', R, R, d]` from what enters the path to the level.

    Args:
        feedback: the path over `levels`; low-rank factors on it are taken in.
        backbone: what is steered.
        levels: those that are steered.
        P: the channel transform to begin with; None: the way begins behind it.
        dtype: what products are taken in.
        to_values: whether a level's `value_weight`, where it has one, ends the way to it.

    Returns:
        A cell of d channels becomes a patch of R by R cells of C' channels; R is 1 but over maps.
    """
    matrices: list[Tensor] = []
    so_far = None if P is None else P.to(dtype)[:, None, None, :]
    for index, A_l, B_l in reversed(list(zip(levels, feedback.A, feedback.B, strict=True))):
        level, W_V = backbone.levels[index], backbone.value_weight(index) if to_values else None
        so_far = _compose(_reshape_to_patches(A_l, level.width_in, dtype), so_far)
        F_l = _compose(_reshape_to_patches(B_l, level.width_in, dtype), so_far)
        matrices.append(F_l if W_V is None else _compose(W_V.to(dtype)[:, None, None, :], F_l))
    return matrices[::-1]


def is_composition_cheaper(feedback: FeedbackPath, backbone: Backbone, levels: range, z: Tensor) -> bool:
    """Whether composing costs less than sending what is selected of `z` from level to level.

    Never over maps, whose deconvolutions would compose to huge ones, nor where weights are divided among processes and
    put together only for a layer's own call.
    """
    if any(backbone.levels[index].undo != "linear" for index in levels):
        return False
    if any(isinstance(get_base_weight(layer), DTensor) for layer in (*feedback.A, *feedback.B)):
        return False
    kind, channels = z.device.type, z.shape[-1]
    slower = HALF_PRECISION_SPEEDUP if kind != "cpu" and torch.is_autocast_enabled(kind) else 1
    return z.numel() // channels >= MIN_TOKENS_PER_CHANNEL * slower * channels


def is_value_composition_cheaper(backbone: Backbone, levels: range, z: Tensor) -> bool:
    """Whether a training step costs less where composing takes W_V in, by FLOPs.

    Per level it is two more products of W_V with a matrix, and every token's way ends at the values, both ways.
    """
    weights = [weight for index in levels if (weight := backbone.value_weight(index)) is not None]
    channels = z.shape[-1]
    tokens, values = z.numel() // channels, sum(len(weight) for weight in weights) / max(len(weights), 1)
    return len(weights) == len(levels) and values * (channels + tokens) < channels * tokens


def _reshape_to_patches(layer: nn.Module, width_out: int, dtype: torch.dtype) -> Tensor:
    """A layer's weight `[C', r, r, C]`: what one cell of C channels becomes; r is 1 but for deconvolutions."""
    r = layer.stride if isinstance(layer, Deconvolution) else 1
    return compute_effective_weight(layer).to(dtype).reshape(width_out, r, r, -1)


def _compose(outer: Tensor, inner: Tensor | None) -> Tensor:
    """`[C', r, r, C]` after `[C, R, R, D]`: every pixel of a patch becomes a patch, `[C', R r, R r, D]`."""
    if inner is None:
        return outer
    product = torch.einsum("oijc,cIJd->oIiJjd", outer, inner)
    return product.flatten(1, 2).flatten(2, 3)
