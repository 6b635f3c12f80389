"""The layers of an attention that make its values, and how a signal enters there (section 3.1, step iv).

`V = W_V (X + X_td)`, while queries and keys are made of `X` alone. What differs between families is where `W_V` is: a
layer of its own, some rows of a layer that also makes queries and keys, or the layer of the keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.plugin import QuantizedLinear, Signal, ValueSignal
from toast_transformers.layers import steer_value_projection


@contextmanager
def replace_attribute(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace an attribute of an object inside the block. Submodules of a module are not attributes."""
    attributes, missing = vars(owner), object()
    before = attributes.get(name, missing)
    attributes[name] = value
    try:
        yield
    finally:
        if before is missing:
            del attributes[name]
        else:
            attributes[name] = before


class ValueLayer(ABC):
    """The part of an attention that makes its values.

    Args:
        attention: The module that has the layer.
        name: Attribute of the layer. An adapter may have wrapped it.
    """

    def __init__(self, attention: nn.Module, name: str) -> None:
        self.attention, self.name = attention, name

    @property
    def layer(self) -> Any:
        """The layer."""
        return getattr(self.attention, self.name)

    @property
    @abstractmethod
    def weight(self) -> Tensor | None:
        """`W_V`, `[values, d]`, dequantized; None if the values are no linear function of the tokens."""

    def count_values(self) -> int | None:
        """Return the number of rows of `weight`, without computing it; None if there is none."""
        count: int = self.layer.out_features
        return count

    @abstractmethod
    def steer(self, signal: Signal, cache: Any = None) -> Any:
        """Return a context in which the signal `[B, N, d]` is added to the tokens from which the values are computed.

        A `ValueSignal` is added to what the value rows make of the tokens. `cache` is the cache of keys and values that
        the attention receives, if any.
        """


class SeparateValueLayer(ValueLayer):
    """A linear layer of its own, such as `v_proj`."""

    @property
    def weight(self) -> Tensor:
        """`W_V`, `[values, d]`."""
        weight: Tensor = self.layer.weight
        return weight

    def steer(self, signal: Signal, cache: Any = None) -> Any:
        """Return a context in which the signal is added to the input of the layer, or to its output."""
        return steer_value_projection(self.layer, signal)


class FusedValueLayer(ValueLayer):
    """Some rows of a linear layer that also makes queries or keys.

    The output channels of the layer are `groups` equal parts: one, or one for each head or group of heads. In every
    part, `width / groups` channels from `begin` on are values; by default the last ones. `transposed` is for layers
    with a weight `[d, outputs]`, as transformers' `Conv1D`.
    """

    def __init__(
        self,
        attention: nn.Module,
        name: str,
        width: int,
        groups: int = 1,
        begin: int | None = None,
        *,
        transposed: bool = False,
    ) -> None:
        super().__init__(attention, name)
        self.width, self.groups, self.begin, self.transposed = width, groups, begin, transposed

    @property
    def weight(self) -> Tensor:
        """`W_V`, `[values, d]`: a view of the weight if the rows are adjacent, else a copy."""
        weight: Tensor = self.layer.weight
        rows = self.select_values(weight.T if self.transposed else weight, 0)
        return rows.flatten(0, 1)

    def count_values(self) -> int:
        """Return the number of values."""
        return self.width

    def select_values(self, projected: Tensor, channels: int = -1) -> Tensor:
        """Return the view of the values: the dimension `channels` becomes `[groups, width / groups]`."""
        channels %= projected.ndim
        parts, width = projected.unflatten(channels, (self.groups, -1)), self.width // self.groups
        begin = parts.shape[channels + 1] - width if self.begin is None else self.begin
        return parts.narrow(channels + 1, begin, width)

    def project_signal(self, signal: Signal, tokens: Tensor) -> Tensor:
        """Return what the signal adds to the values of the tokens, `[B, N, values]`."""
        if isinstance(signal, ValueSignal):
            return signal.tensor
        layer = self.layer
        if isinstance(layer, QuantizedLinear):
            return self._project_quantized(layer, signal.to(tokens.dtype))
        weight = self.weight
        return F.linear(signal.to(weight.dtype), weight)

    def _project_quantized(self, layer: QuantizedLinear, signal: Tensor) -> Tensor:
        """Return the products of the value rows of a packed weight, which are read alone if they are adjacent.

        The product that the backward pass reads again is that of the layer, so no weight is kept for it.
        """
        if self.groups > 1:
            return self.select_values(layer.project(signal)).flatten(-2)
        begin = layer.out_features - self.width if self.begin is None else self.begin
        return layer.project(signal, slice(begin, begin + self.width))

    @contextmanager
    def steer(self, signal: Signal, cache: Any = None) -> Iterator[None]:
        """Inside the block, `W_V` times the signal is added to the values in the output of the layer."""

        def add_to_values(_: nn.Module, inputs: tuple[Tensor, ...], projected: Tensor) -> Tensor:
            added = self.project_signal(signal, inputs[0]).to(projected.dtype)
            values = self.select_values(projected)
            values += added.unflatten(-1, (self.groups, -1))
            return projected

        handle = self.layer.register_forward_hook(add_to_values)
        try:
            yield
        finally:
            handle.remove()


class KeyAsValueLayer(ValueLayer):
    """The layer of the keys, whose output the attention also takes as values where it has no layer for them.

    Inside `steer`, the attention finds such a layer under the name `value_name`: it projects tokens and signal with the
    weight of the keys. Keys do not change.
    """

    def __init__(self, attention: nn.Module, name: str, value_name: str) -> None:
        super().__init__(attention, name)
        self.value_name = value_name

    @property
    def weight(self) -> Tensor:
        """`W_V`, which is `W_K`, `[values, d]`."""
        weight: Tensor = self.layer.weight
        return weight

    @contextmanager
    def steer(self, signal: Signal, cache: Any = None) -> Iterator[None]:
        """Inside the block, the attention makes its values with a call of its own."""

        def project(tokens: Tensor) -> Tensor:
            if isinstance(signal, ValueSignal):
                return self.layer(tokens) + signal.tensor.to(tokens.dtype)
            return self.layer(tokens + signal.to(tokens.dtype))

        with replace_attribute(self.attention, self.value_name, project):
            yield
