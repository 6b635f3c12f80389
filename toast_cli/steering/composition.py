"""Composition of the layers from z to a level into one matrix (not in the paper; it follows from section 3.1).

From the last level to the first everything is linear: `X_td,l = B_l A_l A_{l+1} ... A_L s`. If the signal enters at the
values, the values receive `W_V X_td,l`. Level l therefore only needs `W_V,l B_l A_l ... A_L`. Inference keeps these
matrices instead of the path (`folding`). Training composes them in each step if that is cheaper, and without W_V: the
level's own projection then multiplies the sum of tokens and signal at the cost of the tokens alone. Including W_V is
only cheaper if there are few values (grouped-query attention).
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from toast_cli.backbones.base import Backbone
from toast_cli.steering.feedback import Deconvolution, FeedbackPath, compute_effective_weight, get_base_weight

MIN_TOKENS_PER_CHANNEL = 1.5
"""Tokens per channel above which composing is cheaper: the FLOPs of a training step are equal at this value."""

HALF_PRECISION_SPEEDUP = 16
"""Speed of half-precision products, used for tokens, relative to float32 products, used to compose matrices. The ratio
is from the specifications of accelerators (H100: 990 against 67 TFLOP/s) and is not measured."""


def compose_feedback(
    feedback: FeedbackPath,
    backbone: Backbone,
    levels: range,
    P: Tensor | None,
    dtype: torch.dtype,
    *,
    to_values: bool = True,
) -> list[Tensor]:
    """Return the matrix `[C', R, R, d]` from the input of the path to each steered level, first level first.

    Args:
        feedback: The path over `levels`, including its low-rank factors.
        backbone: The steered backbone.
        levels: The steered levels.
        P: The channel transform to start with, or None to start after it.
        dtype: Data type of the products.
        to_values: Whether to end with the level's `value_weight`, if it has one.

    Returns:
        Each matrix maps a cell of d channels to a patch of R by R cells of C' channels. R is 1 except for maps.
    """
    return compose_segments(feedback, backbone, levels, P, dtype, frozenset(), to_values=to_values)[1]


def compose_segments(
    feedback: FeedbackPath,
    backbone: Backbone,
    levels: range,
    P: Tensor | None,
    dtype: torch.dtype,
    carried: Collection[int],
    *,
    to_values: bool = True,
) -> tuple[dict[int, Tensor], list[Tensor]]:
    """Return matrices to the feedback `u_l` at the `carried` levels, and from there to each level's signal.

    The arguments are those of `compose_feedback`. Every matrix starts at the feedback carried last, or at the input of
    the path. The first result has the matrix to `u_l` of each carried level, the second that to the signal of every
    level, first level first.
    """
    to_carried: dict[int, Tensor] = {}
    to_signals: list[Tensor] = []
    so_far = None if P is None else P.to(dtype)[:, None, None, :]
    for index, A_l, B_l in reversed(list(zip(levels, feedback.A, feedback.B, strict=True))):
        level, W_V = backbone.levels[index], backbone.value_weight(index) if to_values else None
        so_far = _compose(_reshape_to_patches(A_l, level.width_in, dtype), so_far)
        if index in carried:
            to_carried[index], so_far = so_far, None
        F_l = _compose(_reshape_to_patches(B_l, level.width_in, dtype), so_far)
        to_signals.append(F_l if W_V is None else _compose(W_V.to(dtype)[:, None, None, :], F_l))
    return to_carried, to_signals[::-1]


def choose_carried_levels(backbone: Backbone, levels: range) -> frozenset[int]:
    """Return the levels at which computing `u_l` makes the signals cheapest, given the composed matrices.

    A matrix costs the channels that it reads times the values that it writes. So a level of few channels is worth a
    stop if enough levels before it then read those instead of z. Levels of equal width need none.
    """
    cells, sizes = 1, {}
    for index in reversed(levels):
        level, values = backbone.levels[index], backbone.value_width(index)
        cells *= level.stride**2
        sizes[index] = (level.width_in, cells * level.width_in, cells * (level.width_in if values is None else values))

    @cache
    def choose(index: int, channels: int) -> tuple[int, frozenset[int]]:
        """Return the cost of the signals up to a level, from feedback of these channels, and the levels to stop at."""
        if index < levels.start:
            return 0, frozenset()
        width, carried_values, signal_values = sizes[index]
        passed, stops = choose(index - 1, channels)
        after_stop, stops_after = choose(index - 1, width)
        passing = channels * signal_values + passed
        stopping = channels * carried_values + width * signal_values + after_stop
        return (stopping, stops_after | {index}) if stopping < passing else (passing, stops)

    return choose(levels.stop - 1, backbone.levels[levels.stop - 1].width_out)[1]


def is_composition_cheaper(feedback: FeedbackPath, backbone: Backbone, levels: range, z: Tensor) -> bool:
    """Return whether composing is cheaper than passing the selected `z` from level to level.

    Maps are never composed, as their deconvolutions would give huge ones. Weights that are sharded across processes are
    never composed either, as they are gathered only for the call of their layer.
    """
    if any(backbone.levels[index].undo != "linear" for index in levels):
        return False
    if is_sharded(feedback):
        return False
    kind, channels = z.device.type, z.shape[-1]
    slower = HALF_PRECISION_SPEEDUP if kind != "cpu" and torch.is_autocast_enabled(kind) else 1
    return z.numel() // channels >= MIN_TOKENS_PER_CHANNEL * slower * channels


def is_sharded(feedback: FeedbackPath) -> bool:
    """Return whether the weights of the path are sharded across processes."""
    return any(isinstance(get_base_weight(layer), DTensor) for layer in (*feedback.A, *feedback.B))


def is_value_composition_cheaper(backbone: Backbone, levels: range, z: Tensor) -> bool:
    """Return whether including W_V in the composition makes a training step cheaper, by FLOPs.

    Per level, it adds two products of W_V with a matrix, and every token's signal ends at the values, in both passes.
    """
    widths = [width for index in levels if (width := backbone.value_width(index)) is not None]
    channels = z.shape[-1]
    tokens, values = z.numel() // channels, sum(widths) / max(len(widths), 1)
    return len(widths) == len(levels) and values * (channels + tokens) < channels * tokens


def _reshape_to_patches(layer: nn.Module, width_out: int, dtype: torch.dtype) -> Tensor:
    """Return a layer's weight as `[C', r, r, C]`, the patch that a cell of C channels maps to; r is 1 if linear."""
    r = layer.stride if isinstance(layer, Deconvolution) else 1
    return compute_effective_weight(layer).to(dtype).reshape(width_out, r, r, -1)


def _compose(outer: Tensor, inner: Tensor | None) -> Tensor:
    """Compose `[C', r, r, C]` with `[C, R, R, D]`: every pixel of a patch becomes a patch, `[C', R r, R r, D]`."""
    if inner is None:
        return outer
    product = torch.einsum("oijc,cIJd->oIiJjd", outer, inner)
    return product.flatten(1, 2).flatten(2, 3)
