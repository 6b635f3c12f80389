"""What a level is steered by, and in which forms it may come. Torch-free until one is worked out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Values:
    """A signal that a level's `value_weight` has already been worked into: `[B, N, values]`, added to the values."""

    tensor: Tensor


Signal: TypeAlias = "Tensor | Values"
"""What a level is steered by: a tensor of its input's shape, or, where it has a `value_weight`, `Values`."""


@dataclass(frozen=True)
class Pending:
    """A signal that is not worked out yet: what is sent, `[B, N, d]`, times a matrix `[C', d]`.

    A level that is run again in the backward pass works it out again, too, so that no level's signal is kept.
    """

    sent: Tensor
    matrix: Tensor
    at_values: bool

    def worked_out(self) -> Signal:
        """The signal."""
        from torch.nn.functional import linear

        signal = linear(self.sent, self.matrix)
        return Values(signal) if self.at_values else signal


def worked_out(signal: Signal | Pending | None) -> Signal | None:
    """The signal itself, pending or not."""
    return signal.worked_out() if isinstance(signal, Pending) else signal


Sent = TypeVar("Sent", bound="Signal | Pending")


def times(strength: float, signal: Sent) -> Sent:
    """A signal of whatever kind, so many times as strong."""
    if isinstance(signal, Values):
        return replace(signal, tensor=strength * signal.tensor)
    if isinstance(signal, Pending):
        return replace(signal, sent=strength * signal.sent)
    return strength * signal  # type: ignore[return-value]
