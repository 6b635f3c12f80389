"""Steering of a linear layer whose last rows make the values of an attention (section 3.1, step iv)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.plugin import Signal, ValueSignal


@contextmanager
def steer_value_rows(layer: Any, first: int, signal: Signal) -> Iterator[None]:
    """Inside the block, the rows of `layer` from `first` on give `V = W_V (X + signal) + b_V`; others do not change.

    The signal is `[B, N, d]`, or `W_V` times it (`ValueSignal`). Its product is added to the output of a layer that is
    not a plain linear one, such as one with low-rank factors.
    """
    if isinstance(signal, Tensor) and type(layer) is nn.Linear:
        projection: Any = layer
        projection.forward = lambda tokens: _project_steered(layer, first, tokens, signal)
        try:
            yield
        finally:
            del projection.forward
        return

    def add_to_values(_: nn.Module, __: object, projected: Tensor) -> Tensor:
        values = signal.tensor if isinstance(signal, ValueSignal) else F.linear(signal, layer.weight[first:])
        projected[..., first:] += values
        return projected

    handle = layer.register_forward_hook(add_to_values)
    try:
        yield
    finally:
        handle.remove()


def _project_steered(layer: nn.Linear, first: int, tokens: Tensor, signal: Tensor) -> Tensor:
    """Return the projection of tokens with the signal added to the input of the value rows, in one product for both."""
    bias = layer.bias
    steered = tokens + signal.to(tokens.dtype)
    values = F.linear(steered, layer.weight[first:], None if bias is None else bias[first:])
    if first == 0:
        return values
    others = F.linear(tokens, layer.weight[:first], None if bias is None else bias[:first])
    return torch.cat([others, values], dim=-1)
