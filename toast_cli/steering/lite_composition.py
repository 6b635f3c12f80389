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
class LowRankMatrices:
    """The matrices `frozen[l] + Y[l] Z_l` from s to the signals, first level first.

    The factors `Z_l` share rows: `Z_l` has the first rows of `Z_A`, from the layers `A_l` that s has passed, and the
    rows `Z_B[l]` from `B_l`. So their product with the tokens is computed once for all levels.
    """

    frozen: list[Tensor]
    Y: list[Tensor]
    Z_A: Tensor
    Z_B: list[Tensor]

    def apply_to_tokens(self, s: Tensor) -> list[Tensor]:
        """Return the signals of every level, of the shape of `s [..., C]`."""
        tokens = s.flatten(0, -2)
        rows = [len(Z) for Z in (self.Z_A, *self.Z_B)]
        from_A, *from_B = torch.split(F.linear(tokens, torch.cat((self.Z_A, *self.Z_B))), rows, -1)
        signals = []
        for frozen, Y, own in zip(self.frozen, self.Y, from_B, strict=True):
            low = torch.cat((from_A[:, : Y.shape[1] - own.shape[1]], own), 1)
            signals.append(torch.addmm(F.linear(tokens, frozen), low, Y.T).reshape(*s.shape[:-1], -1))
        return signals


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


def compose_low_rank(feedback: FeedbackPath, products: FrozenProducts) -> LowRankMatrices:
    """Return the matrices from s to the signal of every level."""
    K, BK = products.compute(feedback)
    Y_A: Tensor | None = None
    Z_A, Z_B, Y = list[Tensor](), list[Tensor](), list[Tensor]()
    for place, (A_l, B_l) in enumerate(reversed(list(zip(feedback.A, feedback.B, strict=True)))):
        b, a = _get_factors(A_l)
        Z_A.append(a @ K[place - 1] if place else a)
        Y_A = b if Y_A is None else torch.cat((_multiply(A_l, Y_A), b), 1)
        b, a = _get_factors(B_l)
        Z_B.append(a @ K[place])
        Y.append(torch.cat((_multiply(B_l, Y_A), b), 1))
    return LowRankMatrices(BK[::-1], Y[::-1], torch.cat(Z_A), Z_B[::-1])


def _multiply(layer: nn.Module, Y: Tensor) -> Tensor:
    """Return `(W + b a) Y`."""
    b, a = _get_factors(layer)
    return get_base_weight(layer) @ Y + b @ (a @ Y)


def _get_factors(layer: nn.Module) -> tuple[Tensor, Tensor]:
    factors = get_low_rank_factors(layer)
    assert factors is not None
    return factors
