"""Steering of window attention in its values, for the attention of timm's Swin, SwinV2 and SwinV2-CR."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    """Return the bias of the fused projection. SwinV2 stores it outside of the layer, without one for the keys."""
    if getattr(attention, "q_bias", None) is None:
        bias: Tensor | None = attention.qkv.bias
        return bias
    return torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))


@contextmanager
def replace_projection(attention: Any, project: Any) -> Iterator[None]:
    """Compute q, k, v of the windows `[B windows, N, C]` with `project`, which adds the bias, inside the block.

    SwinV2 multiplies with the weight of the layer without calling the layer, unless there is no bias. Its bias is
    hidden inside the block: an entry in `__dict__` shadows the parameter, which stays where it is.
    """
    attention.qkv.forward = project
    hidden = getattr(attention, "q_bias", None) is not None
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
    weight, bias = attention.qkv.weight, get_projection_bias(attention)
    values = 2 * len(weight) // 3
    at_values = isinstance(signal, ValueSignal)
    added = partition_windows(block, signal.tensor if isinstance(signal, ValueSignal) else signal)

    def project(tokens: Tensor) -> Tensor:
        if at_values:
            qkv = F.linear(tokens, weight, bias)
            qkv[..., values:] += added
            return qkv
        first, last = (None, None) if bias is None else (bias[:values], bias[values:])
        steered = F.linear(tokens + added.to(tokens.dtype), weight[values:], last)
        return torch.cat([F.linear(tokens, weight[:values], first), steered], dim=-1)

    with replace_projection(attention, project):
        yield
