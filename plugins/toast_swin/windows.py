"""Steering of window attention in its values, for the attention of timm's Swin, SwinV2 and SwinV2-CR."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models.swin_transformer import window_partition
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.plugin import Signal
from toast_timm.value_projection import ValueProjection, map_signal, replace_forward


def partition_windows(block: Any, signal: Tensor) -> Tensor:
    """Return a map `[B, H, W, C]` in the windows of a block, `[B windows, N, C]`, as timm's block cuts its tokens.

    The map is shifted like the tokens and padded with zeros like them: a padded token has no signal.
    """
    height, width = block.window_size
    if any(block.shift_size):
        signal = torch.roll(signal, shifts=(-block.shift_size[0], -block.shift_size[1]), dims=(1, 2))
    below, right = -signal.shape[1] % height, -signal.shape[2] % width
    if below or right:
        signal = F.pad(signal, (0, 0, 0, right, 0, below))
    return window_partition(signal, block.window_size).flatten(1, 2)


@contextmanager
def steer_window_values(block: Any, projection: ValueProjection, signal: Signal) -> Iterator[None]:
    """Inside the block, `V = W_V (X + signal) + b_V` (section 3.1, step iv); Q and K are unchanged.

    The signal is a map `[B, H, W, C]`, or the values' own if it is a `ValueSignal`.
    """
    with projection.steer(map_signal(signal, partial(partition_windows, block))):
        yield


@dataclass
class AttentionCache:
    """The attention of a level for the tokens that both passes share.

    `map` is the softmax map of every window `[B windows, heads, N, N]`, `mixed` the map times the values
    `[B windows, N, values]`. Both are None before the first pass, or if the attention is fused and has no map.
    """

    index: int
    map: Tensor | None = None
    mixed: Tensor | None = None


@contextmanager
def cache_attention(block: nn.Module, cache: AttentionCache) -> Iterator[None]:
    """Cache the map and the mixed values of the attention that runs inside the block."""
    attention: Any = block.attn

    def record_map(_: nn.Module, __: object, map: Tensor) -> None:
        cache.map = map

    def record_mixed(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        cache.mixed = inputs[0]

    handles = [
        attention.attn_drop.register_forward_hook(record_map),
        attention.proj.register_forward_pre_hook(record_mixed),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def reuse_attention(block: Any, projection: ValueProjection, signal: Signal, cache: AttentionCache) -> Iterator[None]:
    """Inside the block, attend with the cached map: only the signal's own values are mixed, and added to the cached.

    Q and K are unchanged, so the map is that of the first pass. The rest is the end of timm's attention.
    """
    attention: Any = block.attn
    map, mixed = cache.map, cache.mixed
    assert map is not None and mixed is not None
    windows = map_signal(signal, lambda sent: partition_windows(block, sent).to(mixed.dtype))

    def attend(_: Tensor, mask: Tensor | None = None) -> Tensor:
        values = projection.project_signal(windows)
        values = values.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        added = (map @ values).transpose(1, 2).flatten(2)
        output: Tensor = attention.proj_drop(attention.proj(mixed + added))
        return output

    with replace_forward(attention, attend):
        yield
