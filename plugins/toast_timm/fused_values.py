"""The projection that makes the values of an attention, and how a signal enters there (section 3.1, step iv)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.plugin import Signal, ValueSignal


def map_signal(signal: Signal, function: Callable[[Tensor], Tensor]) -> Signal:
    """Apply a function that does not mix channels to a signal of any kind."""
    return ValueSignal(function(signal.tensor)) if isinstance(signal, ValueSignal) else function(signal)


@dataclass(frozen=True)
class FusedValues:
    """The value part of a fused projection, the layer `name` of `owner`.

    The layer is linear, with channels last, or a 1 by 1 convolution of maps `[B, C, H, W]`. Its output channels are
    `groups` (1, or the number of heads) times `parts` equal parts, of which the last are the values: q, k, v or k, v.
    """

    owner: nn.Module
    name: str = "qkv"
    parts: int = 3
    groups: int = 1

    @property
    def layer(self) -> Any:
        """The layer, which an adapter may have replaced since."""
        return getattr(self.owner, self.name)

    @property
    def weight(self) -> Tensor:
        """`W_V`, `[values, C]`."""
        weight: Tensor = self.layer.weight
        return weight.flatten(1).unflatten(0, (self.groups, self.parts, -1))[:, -1].flatten(0, 1)

    def select_values(self, projected: Tensor) -> Tensor:
        """Return the view of the values in the output of the layer: its channels become `[groups, values / groups]`."""
        channels = self._find_channels(projected)
        return projected.unflatten(channels, (self.groups, self.parts, -1)).select(channels + 1, self.parts - 1)

    @contextmanager
    def steer(self, signal: Signal) -> Iterator[None]:
        """Inside the block, `V = W_V (X + signal) + b_V` (section 3.1, step iv). The other parts are unchanged.

        The signal has the shape of the layer's input; a `ValueSignal` has the values as channels.
        """
        layer = self.layer
        if isinstance(signal, Tensor) and type(layer) is nn.Linear and self.groups == 1:
            projection: Any = layer
            projection.forward = lambda tokens: self._project(tokens, signal)
            try:
                yield
            finally:
                del projection.forward
            return

        def add_to_values(_: nn.Module, __: object, projected: Tensor) -> Tensor:
            sent = signal.tensor if isinstance(signal, ValueSignal) else self._project_signal(signal)
            values = self.select_values(projected)
            values += sent.unflatten(self._find_channels(sent), (self.groups, -1))
            return projected

        handle = layer.register_forward_hook(add_to_values)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def replace_input(self, get_input: Callable[[], Tensor]) -> Iterator[None]:
        """Inside the block, `V = W_V X' + b_V` of another input X', which exists once the layer is called."""

        def replace_values(layer: nn.Module, _: object, projected: Tensor) -> Tensor:
            self.select_values(projected).copy_(self.select_values(layer.forward(get_input())))
            return projected

        handle = self.layer.register_forward_hook(replace_values)
        try:
            yield
        finally:
            handle.remove()

    def _project(self, tokens: Tensor, signal: Tensor) -> Tensor:
        """Return the fused projection. One product for tokens and signal costs no more than that of the tokens."""
        weight, bias = self.layer.weight, self.layer.bias
        begin = len(weight) * (self.parts - 1) // self.parts
        first, last = (None, None) if bias is None else (bias[:begin], bias[begin:])
        steered = tokens + signal.to(tokens.dtype)
        return torch.cat([F.linear(tokens, weight[:begin], first), F.linear(steered, weight[begin:], last)], dim=-1)

    def _project_signal(self, signal: Tensor) -> Tensor:
        weight = self.weight
        return F.linear(signal, weight) if self.layer.weight.ndim == 2 else F.conv2d(signal, weight[..., None, None])

    def _find_channels(self, tensor: Tensor) -> int:
        return tensor.ndim - 1 if self.layer.weight.ndim == 2 else 1
