"""The signals that steer a level, and their forms. Imports torch only when a signal is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ValueSignal:
    """A signal times the level's `value_weight`, `[B, N, values]` or `[B, values, H, W]`: it is added to the values."""

    tensor: Tensor


Signal: TypeAlias = "Tensor | ValueSignal"
"""A tensor with the shape of the level's input or, if the level has a `value_weight`, a `ValueSignal`."""


@dataclass(frozen=True)
class LazySignal:
    """A signal that is not computed yet: `sent`, `[B, N, d]`, times a matrix `[C', d]`.

    A level that is recomputed in the backward pass also recomputes the signal, so that no level's signal is stored.
    """

    sent: Tensor
    matrix: Tensor
    at_values: bool

    def resolve(self) -> Signal:
        """Compute the signal."""
        from torch.nn.functional import linear

        signal = linear(self.sent, self.matrix)
        return ValueSignal(signal) if self.at_values else signal


def resolve_signal(signal: Signal | LazySignal | None) -> Signal | None:
    """Return the signal. A lazy signal is computed first."""
    return signal.resolve() if isinstance(signal, LazySignal) else signal


SignalT = TypeVar("SignalT", bound="Signal | LazySignal")


def scale_signal(strength: float, signal: SignalT) -> SignalT:
    """Return a signal of any kind, multiplied by `strength`."""
    if isinstance(signal, ValueSignal):
        return replace(signal, tensor=strength * signal.tensor)
    if isinstance(signal, LazySignal):
        return replace(signal, sent=strength * signal.sent)
    return strength * signal  # type: ignore[return-value]
