"""Composition of TOAST-Lite's path: the frozen layers once for a run, the trained factors in each step.

Every layer has a weight `W + b a` with a frozen W and factors of low rank. So the matrix from s to a level is a frozen
one plus one of low rank, and that stays so from level to level (this follows from section 3.2):

    (W + b a) (K + Y Z) = W K + [W Y + b (a Y), b] [Z; a K]

The frozen `W K` is computed once. A step computes the factors `Y [C', r]` and `Z [r, C]`, whose rank r grows with the
levels, and applies both parts to the tokens: `K s + Y (Z s)`. No product of two square matrices is left.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.steering.feedback import FeedbackPath, get_base_weight, get_low_rank_factors


@dataclass(frozen=True)
class LowRankMatrix:
    """The matrix `frozen + Y Z` from s to a level."""

    frozen: Tensor
    Y: Tensor
    Z: Tensor

    def apply_to_tokens(self, s: Tensor) -> Tensor:
        """Return the product with every token of `s [..., C]`."""
        return F.linear(s, self.frozen) + F.linear(F.linear(s, self.Z), self.Y)


@dataclass
class FrozenProducts:
    """The products of the frozen weights of a path, from the last level to the first: `K_l = A_l ... A_L`, `B_l K_l`.

    They are computed again if a weight was replaced, moved or changed in place, as loading a checkpoint does.
    """

    _weights: list[nn.Parameter] = field(default_factory=list)
    _state: list[tuple[int, torch.device, torch.dtype]] = field(default_factory=list)
    _K: list[Tensor] = field(default_factory=list)
    _BK: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def compute(self, feedback: FeedbackPath) -> tuple[list[Tensor], list[Tensor]]:
        """Return both lists of matrices, without gradients."""
        weights = [get_base_weight(layer) for layer in (*feedback.A, *feedback.B)]
        state = [(weight._version, weight.device, weight.dtype) for weight in weights]
        is_same = len(weights) == len(self._weights) and all(map(operator.is_, weights, self._weights))
        if not is_same or state != self._state:
            self._K, self._BK = [], []
            for A_l, B_l in reversed(list(zip(feedback.A, feedback.B, strict=True))):
                W = get_base_weight(A_l)
                self._K.append(W @ self._K[-1] if self._K else W.detach())
                self._BK.append(get_base_weight(B_l) @ self._K[-1])
            self._weights, self._state = weights, state
        return self._K, self._BK


def has_frozen_products(feedback: FeedbackPath) -> bool:
    """Return whether all layers are linear and frozen, with trained factors of low rank."""
    layers = (*feedback.A, *feedback.B)
    return all(
        isinstance(getattr(layer, "base_layer", None), nn.Linear)
        and get_low_rank_factors(layer) is not None
        and not get_base_weight(layer).requires_grad
        for layer in layers
    )


def compose_low_rank(feedback: FeedbackPath, products: FrozenProducts) -> list[LowRankMatrix]:
    """Return the matrix from s to the signal of every level, first level first."""
    K, BK = products.compute(feedback)
    matrices: list[LowRankMatrix] = []
    Y, Z, before = None, None, None
    for place, (A_l, B_l) in enumerate(reversed(list(zip(feedback.A, feedback.B, strict=True)))):
        Y, Z = _multiply(A_l, before, Y, Z)
        matrices.append(LowRankMatrix(BK[place], *_multiply(B_l, K[place], Y, Z)))
        before = K[place]
    return matrices[::-1]


def _multiply(layer: nn.Module, K: Tensor | None, Y: Tensor | None, Z: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the low-rank part of `(W + b a) (K + Y Z)`; `K` is None for the identity, `Y` and `Z` for zero."""
    factors = get_low_rank_factors(layer)
    assert factors is not None
    b, a = factors
    last = a if K is None else a @ K
    if Y is None or Z is None:
        return b, last
    return torch.cat((get_base_weight(layer) @ Y + b @ (a @ Y), b), 1), torch.cat((Z, last))
