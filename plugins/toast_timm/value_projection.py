"""The layer of a stock attention that makes the values, and the ways in which a signal is added to its input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, DiffAttention
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.plugin import Signal, ValueSignal


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


@dataclass
class ProjectionCache:
    """The projections of a block (one per attention) of the tokens that both passes share."""

    index: int
    projected: list[Tensor] = field(default_factory=list)


class ValueProjection:
    """The layer of an attention whose last rows make the values: one for q, k and v together, or one for v alone.

    Attentions of BEiT and EVA keep the biases of q, k and v outside of their fused layer, and multiply with its weight
    without calling it. While it is steered, they call it, and its result includes the biases.

    Args:
        attention: The module that has the layer.
        name: Attribute of the layer.
        width: Number of values of a token.
    """

    def __init__(self, attention: nn.Module, name: str, width: int) -> None:
        self.attention, self.name, self.width = attention, name, width
        self.begin = self.layer.out_features - width
        self.has_separate_biases = name == "qkv" and getattr(attention, "q_bias", None) is not None

    @property
    def layer(self) -> Any:
        """The layer, which an adapter may have wrapped."""
        return getattr(self.attention, self.name)

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

    def project(self, tokens: Tensor, rows: slice = slice(None)) -> Tensor:
        """Apply some rows of the layer to the tokens."""
        bias = self.bias
        if bias is not None and getattr(self.attention, "qkv_bias_separate", False):
            return F.linear(tokens, self.layer.weight[rows]) + bias[rows]
        return F.linear(tokens, self.layer.weight[rows], None if bias is None else bias[rows])

    def project_steered(self, tokens: Tensor, signal: Tensor, bias_twice: bool = False, first: int = 0) -> Tensor:
        """Return the projection from row `first` on, with the signal added to the input of its values.

        One product for tokens and signal costs no more than the projection without a signal, also in the backward pass.
        """
        values = self.project(tokens + signal.to(tokens.dtype), slice(self.begin, None))
        bias = self.bias
        if bias_twice and bias is not None:
            values = values + bias[self.begin :]
        if first == self.begin:
            return values
        return torch.cat([self.project(tokens, slice(first, self.begin)), values], dim=-1)

    def project_signal(self, signal: Signal, bias_twice: bool = False) -> Tensor:
        """Return what a signal `[B, N, d]` adds to the values."""
        bias = self.bias
        value_bias = bias[self.begin :] if bias_twice and bias is not None else None
        if isinstance(signal, ValueSignal):
            return signal.tensor if value_bias is None else signal.tensor + value_bias
        return F.linear(signal, self.value_weight, value_bias)

    @contextmanager
    def steer(self, signal: Signal, bias_twice: bool = False, projected: bool = False) -> Iterator[None]:
        """Inside the block, `V = W_V (X + signal) + b_V` (section 3.1, step iv); Q and K are unchanged.

        If the tokens are already `projected`, or the layer is not a plain linear one, the contribution of the signal is
        added to the values.
        """
        if isinstance(signal, Tensor) and not projected and type(self.layer) is nn.Linear:
            with self.call_layer(), replace_forward(self.layer, lambda x: self.project_steered(x, signal, bias_twice)):
                yield
            return

        def add_to_values(_: nn.Module, __: object, output: Tensor) -> Tensor:
            output[..., self.begin :] += self.project_signal(signal, bias_twice)
            return output

        with self.call_layer():
            handle = self.layer.register_forward_hook(add_to_values)
            try:
                yield
            finally:
                handle.remove()

    @contextmanager
    def reuse(self, cache: ProjectionCache, place: int) -> Iterator[None]:
        """Take the projection of the tokens from `cache.projected[place]` inside the block, or store it there."""
        projected = cache.projected
        with self.call_layer():
            if place < len(projected):
                # Signals are added in place.
                with replace_forward(self.layer, lambda _: projected[place].clone()):
                    yield
                return
            handle = self.layer.register_forward_hook(lambda _, __, output: projected.append(output.clone()))
            try:
                yield
            finally:
                handle.remove()

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
        is_plain = type(layer) is nn.Linear
        forward = self.project if is_plain else lambda tokens: type(layer).forward(layer, tokens) + self.bias
        attributes["q_bias"] = None
        try:
            with replace_forward(layer, forward):
                yield
        finally:
            del attributes["q_bias"]

    def prepare(self) -> Any:
        """Return a context in which an adapter around the layer has its effect, also without a signal."""
        is_skipped = self.has_separate_biases and type(self.layer) is not nn.Linear
        return self.call_layer() if is_skipped else nullcontext()


def find_value_projections(block: nn.Module) -> list[ValueProjection]:
    """Return the layers of a stock block that make values: none if toast does not know its attention.

    A block of parallel attentions has several. A block that runs attention and MLP in parallel projects q, k, v and the
    input of its MLP with one layer, whose last rows are the values.
    """
    if isinstance(block, ParallelScalingBlock | DiffParallelScalingBlock):
        return [ValueProjection(block, "in_proj", block.in_split[-1])]
    known = (Attention, AttentionRope, DiffAttention, EvaAttention)
    return [_find_value_projection(part) for part in block.modules() if isinstance(part, known)]


def is_differential(projection: ValueProjection) -> bool:
    """Return whether an attention is the difference of two maps, so that it has no map whose rows are weights."""
    return isinstance(projection.attention, DiffAttention | DiffParallelScalingBlock)


def _find_value_projection(attention: Any) -> ValueProjection:
    if isinstance(attention.qkv, nn.Linear):
        return ValueProjection(attention, "qkv", attention.qkv.out_features // 3)
    return ValueProjection(attention, "v_proj", attention.v_proj.out_features)
