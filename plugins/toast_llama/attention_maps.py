"""Attention maps of one decoder layer, through transformers' own door for attention functions."""

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
_recorded_map: ContextVar[list[Tensor]] = ContextVar("map")
"""The layer's map, and how far it is from what fused attention does."""


def _record_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Keep the softmax map `[B, heads, N, M]` and its mismatch (`Trace`); what comes out is fused attention's own."""
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    groups = query.shape[1] // key.shape[1]
    every_head, every_value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    with upcast_attention_inputs(query, every_head, every_value) as (q, k, v):
        scores = q @ k.transpose(-2, -1) * scale
    if attention_mask is None:  # plainly causal: fused attention is told so without a mask
        N, M = scores.shape[-2:]
        attention_mask_here = torch.ones(N, M, dtype=torch.bool, device=scores.device).tril(M - N)
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
    # A token of padding may see nothing, and then both mean nothing.
    sees = (attention_mask_here if attention_mask_here.dtype == torch.bool else attention_mask_here > -1).any(-1)
    seen = sees.unsqueeze(-1).expand_as(mixed)
    difference = (mixed - fused.transpose(1, 2)).abs().where(seen, 0.0)
    largest = fused.transpose(1, 2).abs().where(seen, 0.0).amax().clamp_min(1e-6)
    mismatch = difference.amax() / largest
    # Never cast for nothing: a traced graph checks the type at every cast, and keeps all that leads to it.
    _recorded_map.get().extend([attention, mismatch if mismatch.dtype == fused.dtype else mismatch.to(fused.dtype)])
    return fused, None


AttentionInterface.register(_ATTENTION_NAME, _record_attention)


@contextmanager
def record_layer_attention(attention_layer: nn.Module, trace: Trace, index: int) -> Iterator[None]:
    """Within the block, an attention layer leaves its map and its mismatch in the trace.

    Where the model computes its attention unfused, the layer hands out the very map it uses: there is no mismatch.
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
