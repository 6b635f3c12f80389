"""Steering of window attention in its values, for the attention of timm's Swin, SwinV2 and SwinV2-CR."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.swin_transformer import window_partition
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.plugin import Signal, ValueSignal


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


def get_projection_bias(attention: Any) -> Tensor | None:
    """Return the bias of the fused projection. SwinV2 stores it outside of the layer."""
    q_bias = attention._parameters.get("q_bias")  # also if `replace_projection` hides it
    if q_bias is not None:
        return torch.cat((q_bias, attention.k_bias, attention.v_bias))
    bias: Tensor | None = attention.qkv.bias
    return bias


def get_value_weight(attention: Any) -> Tensor:
    """Return the value third of the fused projection, `[values, C]`."""
    weight: Tensor = attention.qkv.weight
    return weight[2 * len(weight) // 3 :]


@contextmanager
def replace_projection(attention: Any, project: Any) -> Iterator[None]:
    """Compute q, k, v of the windows `[B windows, N, C]` with `project`, which adds the bias, inside the block.

    SwinV2 multiplies with the weight of the layer without calling the layer, unless there is no bias. Its bias is
    hidden inside the block: an entry in `__dict__` shadows the parameter, which stays where it is.
    """
    attention.qkv.forward = project
    hidden = attention._parameters.get("q_bias") is not None
    if hidden:
        attention.__dict__["q_bias"] = None
    try:
        yield
    finally:
        del attention.qkv.forward
        if hidden:
            del attention.__dict__["q_bias"]


@contextmanager
def steer_window_values(block: nn.Module, signal: Signal) -> Iterator[None]:
    """Inside the block, `V = W_V (X + signal) + b_V` (section 3.1, step iv); Q and K are unchanged.

    The signal is a map `[B, H, W, C]`, or the values' own if it is a `ValueSignal`.
    """
    attention: Any = block.attn
    added = partition_windows(block, signal.tensor if isinstance(signal, ValueSignal) else signal)

    def project(tokens: Tensor) -> Tensor:
        weight, bias = attention.qkv.weight, get_projection_bias(attention)
        values = 2 * len(weight) // 3
        if isinstance(signal, ValueSignal):
            qkv = F.linear(tokens, weight, bias)
            qkv[..., values:] += added
            return qkv
        first, last = (None, None) if bias is None else (bias[:values], bias[values:])
        steered = F.linear(tokens + added.to(tokens.dtype), weight[values:], last)
        return torch.cat([F.linear(tokens, weight[:values], first), steered], dim=-1)

    with replace_projection(attention, project):
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
def reuse_attention(block: nn.Module, signal: Signal, cache: AttentionCache) -> Iterator[None]:
    """Inside the block, attend with the cached map: only the signal's own values are mixed, and added to the cached.

    Q and K are unchanged, so the map is that of the first pass. The rest is the end of timm's attention.
    """
    attention: Any = block.attn
    map, mixed = cache.map, cache.mixed
    assert map is not None and mixed is not None
    windows = partition_windows(block, signal.tensor if isinstance(signal, ValueSignal) else signal).to(mixed.dtype)

    def attend(_: Tensor, mask: Tensor | None = None) -> Tensor:
        values = windows if isinstance(signal, ValueSignal) else F.linear(windows, get_value_weight(attention))
        values = values.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        added = (map @ values).transpose(1, 2).flatten(2)
        output: Tensor = attention.proj_drop(attention.proj(mixed + added))
        return output

    attention.forward = attend
    try:
        yield
    finally:
        del attention.forward
