"""Attention maps of one decoder layer, recorded with an attention function registered in transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from toast_cli.plugin import Trace, upcast_attention_inputs

_ATTENTION_NAME = "toast_recording"
LAYERS_WITHOUT_MAPS = frozenset({"FalconAttention", "FalconFlashAttention2", "InklingAttention"})
"""Classes of attention that compute scores on their own, or add a bias to them that only their own function takes."""

_recorded_map: ContextVar[list[Tensor]] = ContextVar("map")
"""The attention map of the layer and its mismatch with fused attention."""


def _record_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Record the softmax map `[B, heads, N, M]` and its mismatch (see `Trace`), and return fused attention's output."""
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    groups = query.shape[1] // key.shape[1]
    every_head, every_value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    with upcast_attention_inputs(query, every_head, every_value) as (q, k, v):
        scores = q @ k.transpose(-2, -1) * scale
    if attention_mask is None:  # fused attention needs no mask, causal or not
        causal = settings.get("is_causal")
        N, M = scores.shape[-2:]
        attention_mask_here = torch.ones(N, M, dtype=torch.bool, device=scores.device)
        if getattr(module, "is_causal", True) if causal is None else causal:
            attention_mask_here = attention_mask_here.tril(M - N)
    else:
        attention_mask_here = attention_mask[..., : key.shape[-2]]
    if attention_mask_here.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask_here, torch.finfo(scores.dtype).min)
    else:
        scores = scores + attention_mask_here
    attention = scores.softmax(-1)
    fused, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    with upcast_attention_inputs(query, every_head, every_value):
        mixed = attention @ v
    # A padding token may attend to no token. Its values are then undefined in both.
    masked = torch.finfo(scores.dtype).min / 2  # a smaller bias than this is a mask
    attends = (attention_mask_here if attention_mask_here.dtype == torch.bool else attention_mask_here > masked).any(-1)
    valid = attends.unsqueeze(-1).expand_as(mixed)
    difference = (mixed - fused.transpose(1, 2)).abs().where(valid, 0.0)
    largest = fused.transpose(1, 2).abs().where(valid, 0.0).amax().clamp_min(1e-6)
    mismatch = difference.amax() / largest
    # Cast only if needed: a traced graph checks the data type at every cast, and keeps all operations before it.
    _recorded_map.get().extend([attention, mismatch if mismatch.dtype == fused.dtype else mismatch.to(fused.dtype)])
    return fused, None


AttentionInterface.register(_ATTENTION_NAME, _record_attention)


def has_attention_map(attention_layer: nn.Module) -> bool:
    """Return whether a layer has one map whose rows are weights of tokens, and hands it out.

    Not so if some of the weight goes to no token (sinks), if it is the difference of two maps, or if the layer does not
    call one of transformers' attention functions.
    """
    name = type(attention_layer).__name__
    has_interface = hasattr(attention_layer, "config") and name not in LAYERS_WITHOUT_MAPS
    return has_interface and not hasattr(attention_layer, "sinks") and "Diff" not in name


@contextmanager
def record_layer_attention(attention_layer: nn.Module, trace: Trace, index: int) -> Iterator[None]:
    """Record the map and the mismatch of an attention layer in the trace inside the block.

    A model without fused attention returns the map that it uses, which has no mismatch.
    """
    config: Any = attention_layer.config
    maps: list[Tensor] = []
    before = config._attn_implementation
    if before == "eager":
        handle = attention_layer.register_forward_hook(lambda _, __, out: maps.append(out[1]))
        try:
            yield
            trace.attention[index] = maps[0]
        finally:
            handle.remove()
        return
    token = _recorded_map.set(maps)
    config._attn_implementation = _ATTENTION_NAME
    try:
        yield
        trace.attention[index], trace.mismatch[index] = maps
    finally:
        config._attn_implementation = before
        _recorded_map.reset(token)
