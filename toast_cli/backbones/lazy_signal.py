"""What a level is steered by, and in which forms it may come. Torch-free until one is worked out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ValueSignal:
    """A signal that a level's `value_weight` has already been worked into: `[B, N, values]`, added to the values."""

    tensor: Tensor


Signal: TypeAlias = "Tensor | ValueSignal"
"""What a level is steered by: a tensor of its input's shape, or, where it has a `value_weight`, a `ValueSignal`."""


@dataclass(frozen=True)
class LazySignal:
    """A signal that is not worked out yet: what is sent, `[B, N, d]`, times a matrix `[C', d]`.

    A level that is run again in the backward pass works it out again, too, so that no level's signal is kept.
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
    """Return the signal itself, and compute it first if it is pending."""
    return signal.resolve() if isinstance(signal, LazySignal) else signal


SignalT = TypeVar("SignalT", bound="Signal | LazySignal")


def scale_signal(strength: float, signal: SignalT) -> SignalT:
    """A signal of whatever kind, so many times as strong."""
    if isinstance(signal, ValueSignal):
        return replace(signal, tensor=strength * signal.tensor)
    if isinstance(signal, LazySignal):
        return replace(signal, sent=strength * signal.sent)
    return strength * signal  # type: ignore[return-value]
