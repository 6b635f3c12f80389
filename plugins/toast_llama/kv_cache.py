"""A cache of the keys and values of both passes for transformers' `generate`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE_ARGUMENT = (
    "cache" if any(field.name == "cache" for field in fields(CausalLMOutputWithPast)) else "past_key_values"
)
"""Name of the cache argument in transformers: `past_key_values` before 5.24."""


class TwoPassCache(Cache):
    """A cache of 2 L layers, L for each pass (section 3.1 of the method needs both).

    `first` and `second` are caches of their own over the same layers, so each pass counts its levels from 0, and
    `generate` reorders, repeats and crops all 2 L layers together.
    """

    def __init__(self, config: Any) -> None:
        self.first, self.second = DynamicCache(config=config), DynamicCache(config=config)
        super().__init__(layers=[*self.first.layers, *self.second.layers])
