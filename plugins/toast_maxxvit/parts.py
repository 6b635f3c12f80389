"""The parts of a stock timm `MaxxVit` that are levels, and how a signal enters each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models.maxxvit import (
    Attention2d,
    AttentionCl,
    PartitionAttentionCl,
    TransformerBlock2d,
    grid_partition,
    window_partition,
)
from torch import Tensor, nn

from toast_cli.plugin import Signal, ValueSignal
from toast_timm.fused_values import FusedValues
from toast_timm.value_projection import ValueProjection, find_value_projection, map_signal

Partition = Callable[[Tensor, Any], Tensor]


def _find_values(attention: AttentionCl | Attention2d) -> ValueProjection:
    """Return the value part of an attention's projection: q, k, v are fused per head, or as a whole."""
    if isinstance(attention, AttentionCl) and not attention.head_first:
        return find_value_projection(attention)
    groups = attention.num_heads if attention.head_first else 1
    return FusedValues(attention, "qkv", len(attention.qkv.weight) // 3, groups)


@dataclass(frozen=True)
class Part(ABC):
    """A part of the network that is a level: a stock module, its widths, and the stride at its beginning."""

    module: Any
    width_in: int
    width_out: int
    stride: int = 1

    @abstractmethod
    def run(self, hidden: Tensor, signal: Signal | None) -> Tensor:
        """Run the stock module on a map `[B, C, H, W]`, steered by the signal unless it is None."""

    def value_weight(self) -> Tensor | None:
        """Return `W_V` if the signal enters at the values linearly, else None."""
        return None


class ConvolutionPart(Part):
    """MBConv or ConvNeXt blocks: the signal is added to their input, as in section 4.4."""

    def run(self, hidden: Tensor, signal: Signal | None) -> Tensor:
        """Run the stock blocks."""
        assert not isinstance(signal, ValueSignal)  # this level has no value_weight
        return self.module(hidden if signal is None else hidden + signal)


class TransformerPart(Part):
    """A `TransformerBlock2d` of CoAtNet, with attention between all cells: the signal enters at the values.

    With a stride, the block pools its normalized input before the projection, and the signal is pooled alike:
    `V = W_V pool(X + s) + b_V`. Average pooling is linear, so the signal can be pooled, and projected, by itself.
    """

    module: TransformerBlock2d

    def run(self, hidden: Tensor, signal: Signal | None) -> Tensor:
        """Run the stock block."""
        if signal is None:
            return self.module(hidden)
        with self._steer(signal):
            return self.module(hidden)

    def value_weight(self) -> Tensor | None:
        """Return `W_V`, unless the signal is pooled by maxima."""
        return self._values.value_weight if self._is_linear else None

    @property
    def _values(self) -> ValueProjection:
        return _find_values(self.module.attn)

    @property
    def _is_linear(self) -> bool:
        return self.stride == 1 or isinstance(self.module.norm1.down.pool, nn.AvgPool2d)

    def _steer(self, signal: Signal) -> Any:
        if self.stride == 1:
            return self._values.steer(signal)
        if self._is_linear:
            return self._values.steer(map_signal(signal, self.module.norm1.down.pool))
        assert not isinstance(signal, ValueSignal)  # this level has no value_weight
        return self._steer_before_pooling(signal)

    @contextmanager
    def _steer_before_pooling(self, signal: Tensor) -> Iterator[None]:
        steered: list[Tensor] = []

        def pool_steered(down: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            steered.append(down.forward(inputs[0] + signal.to(inputs[0].dtype)))

        handle = self.module.norm1.down.register_forward_pre_hook(pool_steered)
        try:
            with self._values.replace_input(steered.pop):
                yield
        finally:
            handle.remove()


class PartitionPart(Part):
    """Attention in windows, over a grid, or both at once, with its MLP: the signal enters at the values.

    The signal is divided into the same windows as the tokens. Two parallel attentions receive the same signal.
    """

    def run(self, hidden: Tensor, signal: Signal | None) -> Tensor:
        """Run the stock block, which may take its channels last."""
        with ExitStack() as attached:
            if signal is not None:
                for (attention, partition), own in zip(self._attentions, self._split(signal), strict=True):
                    sent = map_signal(own, partial(self._divide, partition=partition))
                    attached.enter_context(_find_values(attention).steer(sent))
            if not self._channels_last:
                return self.module(hidden)
            return self.module(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def value_weight(self) -> Tensor:
        """Return `W_V` of every attention, `[values, C]`."""
        return torch.cat([_find_values(attention).value_weight for attention, _ in self._attentions])

    @property
    def _channels_last(self) -> bool:
        return isinstance(self.module, PartitionAttentionCl) or hasattr(self.module, "attn_grid")

    @property
    def _attentions(self) -> list[tuple[Any, Partition]]:
        """The attentions of the block, each with the timm function that divides a map `[B, H, W, C]` for it."""
        block = self.module
        if hasattr(block, "attn_grid"):
            return [(block.attn_block, window_partition), (block.attn_grid, grid_partition)]
        return [(block.attn, window_partition if block.partition_block else grid_partition)]

    def _divide(self, map: Tensor, partition: Partition) -> Tensor:
        """Return a map `[B, C, H, W]` in the windows and the layout that the attention receives."""
        windows = partition(map.permute(0, 2, 3, 1), self.module.partition_size)
        return windows if self._channels_last else windows.permute(0, 3, 1, 2)

    def _split(self, signal: Signal) -> Sequence[Signal]:
        """Return the signal of each attention: parts of a `ValueSignal`, else the same for all."""
        count = len(self._attentions)
        if isinstance(signal, ValueSignal):
            return [ValueSignal(part) for part in signal.tensor.chunk(count, dim=1)]
        return [signal] * count
