"""A cache of the keys and values of both passes for transformers' `generate`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE_ARGUMENT = (
    "cache" if any(field.name == "cache" for field in fields(CausalLMOutputWithPast)) else "past_key_values"
)
"""Name of the cache argument in transformers: `past_key_values` before 5.24."""


FREE_TOKENS = 32
"""Number of further tokens that a buffer has room for, at least."""


class GrowingLayer(DynamicLayer):
    """A layer of the cache that appends tokens to a buffer, so that a token does not copy all those before it.

    `keys` and `values` are views of the used part of the buffers. If something else has replaced them, the next token
    copies them into new buffers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[str, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, *arguments: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens `[B, heads, N, d]`, and return those of all tokens."""
        if torch.is_grad_enabled() or self.get_seq_length() == 0:
            return super().update(key_states, value_states, *arguments, **options)
        self.keys, self.values = self._append("keys", key_states), self._append("values", value_states)
        return self.keys, self.values

    def reset(self) -> None:
        """Remove all tokens."""
        super().reset()
        self._buffers.clear()

    def _append(self, name: str, states: Tensor) -> Tensor:
        tokens: Tensor = getattr(self, name)
        batch, heads, used, width = tokens.shape
        total, buffer = used + states.shape[-2], self._buffers.get(name)
        kept = buffer is not None and buffer.data_ptr() == tokens.data_ptr() and buffer.shape[:2] == (batch, heads)
        if buffer is None or not kept or buffer.shape[-2] < total:
            self._buffers[name] = buffer = tokens.new_empty(batch, heads, total + max(FREE_TOKENS, total // 4), width)
            buffer[:, :, :used] = tokens
        buffer[:, :, used:total] = states
        return buffer[:, :, :total]


class TwoPassCache(Cache):
    """A cache of 2 L layers, L for each pass (section 3.1 of the method needs both).

    `first` and `second` are caches of their own over the same layers, so each pass counts its levels from 0, and
    `generate` reorders, repeats and crops all 2 L layers together.
    """

    def __init__(self, config: Any) -> None:
        self.first, self.second = DynamicCache(config=config), DynamicCache(config=config)
        for cache in (self.first, self.second):
            cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        super().__init__(layers=[*self.first.layers, *self.second.layers])
