"""Keys and values of both passes, as one cache that transformers' `generate` can hold."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE_ARGUMENT = (
    "cache" if any(field.name == "cache" for field in fields(CausalLMOutputWithPast)) else "past_key_values"
)
"""What transformers calls the keys and values that it keeps: `past_key_values` before 5.24."""


class TwoPassCache(Cache):
    """A cache of 2 L layers: the first pass's L and the second's (section 3.1 of the method needs both).

    `first` and `second` are caches of their own over the same layers, so that each pass counts its levels from 0, while
    `generate` reorders, repeats and crops all 2 L as one.
    """

    def __init__(self, config: Any) -> None:
        self.first, self.second = DynamicCache(config=config), DynamicCache(config=config)
        super().__init__(layers=[*self.first.layers, *self.second.layers])
