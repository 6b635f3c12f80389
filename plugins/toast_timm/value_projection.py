"""The layer of a stock attention that makes the values, and the ways in which a signal is added to its input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, DiffAttention
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.plugin import Signal, ValueSignal

STOCK_ATTENTIONS = (Attention, AttentionRope, DiffAttention, EvaAttention)
"""The attentions that several of timm's models share."""


@contextmanager
def replace_forward(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's `forward` inside the block. Blocks may be nested."""
    attributes = vars(layer)
    missing = object()
    before = attributes.get("forward", missing)
    attributes["forward"] = forward
    try:
        yield
    finally:
        if before is missing:
            del attributes["forward"]
        else:
            attributes["forward"] = before


@contextmanager
def replace_output(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the output of a module by a function of it inside the block."""
    handle = layer.register_forward_hook(lambda _, __, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def map_signal(signal: Signal, function: Callable[[Tensor], Tensor]) -> Signal:
    """Apply a function that does not mix channels to a signal of any kind."""
    return ValueSignal(function(signal.tensor)) if isinstance(signal, ValueSignal) else function(signal)


@dataclass
class ProjectionCache:
    """What the projecting layers of block `index` make of the tokens that both passes share."""

    index: int
    projected: dict[nn.Module, Tensor] = field(default_factory=dict)


class ValueProjection:
    """The layer of an attention whose last rows make the values: one for q, k and v (or k and v), or one for v alone.

    Attentions of BEiT, EVA and SwinV2 keep the biases of q, k and v outside of their fused layer, and multiply with its
    weight without calling it. While it is steered, they call it, and its result includes the biases.

    Args:
        attention: The module that has the layer.
        name: Attribute of the layer.
        width: Number of values of a token.
    """

    def __init__(self, attention: nn.Module, name: str, width: int) -> None:
        self.attention, self.name, self.width = attention, name, width
        self.begin = len(self.layer.weight) - width
        self.has_separate_biases = name == "qkv" and getattr(attention, "q_bias", None) is not None

    @property
    def layer(self) -> Any:
        """The layer, which an adapter may have wrapped."""
        return getattr(self.attention, self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """Attributes of all layers that project the tokens."""
        return ("q_proj", "k_proj", "v_proj") if self.name == "v_proj" else (self.name,)

    @property
    def bias(self) -> Tensor | None:
        """The bias of all rows."""
        if not self.has_separate_biases:
            return self.layer.bias
        biases = self.attention._parameters
        return torch.cat((biases["q_bias"], self.attention.k_bias, biases["v_bias"]))  # type: ignore[arg-type]

    @property
    def value_weight(self) -> Tensor:
        """`W_V`, `[values, d]`."""
        return self.layer.weight[self.begin :]

    def select_values(self, projected: Tensor) -> Tensor:
        """Return the view of the values in the output of the layer."""
        return projected[..., self.begin :]

    def project(self, tokens: Tensor, rows: slice = slice(None)) -> Tensor:
        """Apply some rows of the layer to the tokens."""
        return self._project(tokens, rows, self.bias)

    def project_steered(self, tokens: Tensor, signal: Tensor, bias_twice: bool = False, first: int = 0) -> Tensor:
        """Return the projection from row `first` on, with the signal added to the input of its values.

        One product for tokens and signal costs no more than the projection without a signal, also in the backward pass.
        """
        bias = self.bias
        values = self._project(tokens + signal.to(tokens.dtype), slice(self.begin, None), bias)
        if bias_twice and bias is not None:
            values = values + bias[self.begin :]
        if first == self.begin:
            return values
        return torch.cat([self._project(tokens, slice(first, self.begin), bias), values], dim=-1)

    def project_signal(self, signal: Signal, bias_twice: bool = False) -> Tensor:
        """Return what a signal `[B, N, d]` adds to the values."""
        bias = self.bias if bias_twice else None
        value_bias = None if bias is None else bias[self.begin :]
        if isinstance(signal, ValueSignal):
            return signal.tensor if value_bias is None else signal.tensor + value_bias
        weight = self.value_weight
        return F.linear(signal.to(weight.dtype), weight, value_bias)

    @contextmanager
    def steer(self, signal: Signal, bias_twice: bool = False, projected: bool = False) -> Iterator[None]:
        """Inside the block, `V = W_V (X + signal) + b_V` (section 3.1, step iv); Q and K are unchanged.

        If the tokens are already `projected`, or the layer is not a plain linear one, the contribution of the signal is
        added to the values.
        """

        def add_to_values(output: Tensor) -> Tensor:
            added = self.project_signal(signal, bias_twice)
            return self._add_to_cached(output, added) if projected else self._add_to_values(output, added)

        if isinstance(signal, Tensor) and not projected and self._is_plain:
            attached = replace_forward(self.layer, lambda tokens: self.project_steered(tokens, signal, bias_twice))
        else:
            attached = replace_output(self.layer, add_to_values)
        with self.call_layer(), attached:
            yield

    @contextmanager
    def replace_input(self, get_input: Callable[[], Tensor]) -> Iterator[None]:
        """Inside the block, `V = W_V X' + b_V` of another input X', which exists once the layer is called."""
        layer = self.layer

        def replace_values(projected: Tensor) -> Tensor:
            self.select_values(projected).copy_(self.select_values(layer.forward(get_input())))
            return projected

        with replace_output(layer, replace_values):
            yield

    @contextmanager
    def reuse(self, cache: ProjectionCache) -> Iterator[None]:
        """Take what the layers make of the tokens from the cache inside the block, or store it there."""
        with ExitStack() as attached:
            attached.enter_context(self.call_layer())
            for name in self.names:
                attached.enter_context(_reuse(getattr(self.attention, name), cache.projected))
            yield

    @contextmanager
    def call_layer(self) -> Iterator[None]:
        """Make an attention with separate biases call its layer inside the block, as adapters and hooks need.

        timm calls the layer if there is no bias of the queries, so the attribute is hidden, and the layer adds all
        three biases.
        """
        attributes = vars(self.attention)
        if not self.has_separate_biases or "q_bias" in attributes:
            yield
            return
        layer = self.layer
        forward = self.project if self._is_plain else lambda tokens: type(layer).forward(layer, tokens) + self.bias
        attributes["q_bias"] = None
        try:
            with replace_forward(layer, forward):
                yield
        finally:
            del attributes["q_bias"]

    def prepare(self) -> Any:
        """Return a context in which an adapter around the layer has its effect, also without a signal."""
        return self.call_layer() if self.has_separate_biases and not self._is_plain else nullcontext()

    @property
    def _is_plain(self) -> bool:
        return type(self.layer) is nn.Linear

    def _project(self, tokens: Tensor, rows: slice, bias: Tensor | None) -> Tensor:
        weight = self.layer.weight[rows]
        if bias is None:
            return F.linear(tokens, weight)
        if getattr(self.attention, "qkv_bias_separate", False):
            return F.linear(tokens, weight) + bias[rows]
        return F.linear(tokens, weight, bias[rows])

    def _add_to_values(self, projected: Tensor, added: Tensor) -> Tensor:
        values = self.select_values(projected)
        values += added
        return projected

    def _add_to_cached(self, projected: Tensor, added: Tensor) -> Tensor:
        """Return a new tensor: the cached projection of the tokens is not to change."""
        values = projected[..., self.begin :] + added.to(projected.dtype)
        return torch.cat([projected[..., : self.begin], values], dim=-1) if self.begin else values


def _reuse(layer: nn.Module, projected: dict[nn.Module, Tensor]) -> Any:
    if layer in projected:
        return replace_forward(layer, lambda _: projected[layer])
    return replace_output(layer, lambda output: projected.setdefault(layer, output))


def find_value_projections(
    block: nn.Module, attentions: tuple[type[nn.Module], ...] = STOCK_ATTENTIONS
) -> list[ValueProjection]:
    """Return the layers of a stock block that make values: none if it has no attention of these classes.

    A block of parallel attentions has several. A block that runs attention and MLP in parallel projects q, k, v and the
    input of its MLP with one layer, whose last rows are the values.
    """
    if isinstance(block, ParallelScalingBlock | DiffParallelScalingBlock):
        return [ValueProjection(block, "in_proj", block.in_split[-1])]
    return [find_value_projection(part) for part in block.modules() if isinstance(part, attentions)]


def find_value_projection(attention: Any) -> ValueProjection:
    """Return the layer of an attention that makes its values: `qkv`, the last third, or `v_proj`."""
    if getattr(attention, "qkv", None) is None:
        return ValueProjection(attention, "v_proj", len(attention.v_proj.weight))
    return ValueProjection(attention, "qkv", len(attention.qkv.weight) // 3)


def is_differential(projection: ValueProjection) -> bool:
    """Return whether an attention is the difference of two maps, so that it has no map whose rows are weights."""
    return isinstance(projection.attention, DiffAttention | DiffParallelScalingBlock)
