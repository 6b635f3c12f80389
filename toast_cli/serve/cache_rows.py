"""Rows of the caches of transformers: texts join a running batch and leave it.

The tokens of a row are aligned on the right, after padding that the attention mask hides. So every row continues in
the same column, and the distance between two columns is the distance between two tokens of a row, which the sliding
windows of some layers depend on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import cache_utils
from transformers.cache_utils import Cache, DynamicLayer

GROWING_LAYERS = frozenset(
    {
        "DynamicLayer",
        "DynamicSlidingWindowLayer",
        "LinearAttentionLayer",
        "LinearAttentionAndFullAttentionLayer",
        "LinearAttentionAndSlidingWindowAttentionLayer",
        "DummyLayer",
    }
)
"""Kinds of layers whose whole state is the keys and values of each token, or recurrent states of each row."""


def supports_rows(cache: Any) -> bool:
    """Return whether rows can join and leave a cache: it has no layer with another kind of state."""
    return all(_find_kind(layer) in GROWING_LAYERS for layer in cache.layers)


def supports_padding(cache: Any) -> bool:
    """Return whether prompts of different lengths can be read together: no layer has recurrent states."""
    return not any(hasattr(layer, "recurrent_states") for layer in cache.layers)


def _find_kind(layer: Any) -> str:
    kinds = (kind.__name__ for kind in type(layer).__mro__ if kind.__module__ == cache_utils.__name__)
    return next(kinds, "")


def append_rows(cache: Cache, added: Cache, length: int) -> None:
    """Append the rows of another cache of the same model, which must not be used afterwards.

    `length` is the number of columns of the longer one; the other one is padded on the left.
    """
    for own, other in zip(cache.layers, added.layers, strict=True):
        if _has_keys(own) and _has_keys(other):
            for name in ("keys", "values"):
                parts = [_fit_columns(getattr(layer, name), _count_stored(own, length)) for layer in (own, other)]
                setattr(own, name, torch.cat(parts))
            _set_length(own, length)
        for states, index in _list_states(own):
            states[index] = torch.cat([states[index], _get_states(other, own, states)[index]])


def select_rows(cache: Cache, rows: Tensor, length: int) -> None:
    """Keep only some rows, and of them the last `length` columns."""
    for layer in cache.layers:
        if _has_keys(layer):
            for name in ("keys", "values"):
                kept = _fit_columns(getattr(layer, name), _count_stored(layer, length))
                setattr(layer, name, kept.index_select(0, rows))
            _set_length(layer, length)
        for states, index in _list_states(layer):
            states[index] = states[index].index_select(0, rows)


def _has_keys(layer: Any) -> bool:
    """Return whether a layer has keys; the layers that only one of the two passes runs have none in the other."""
    return isinstance(layer, DynamicLayer) and isinstance(layer.keys, Tensor) and layer.keys.dim() == 4


def _count_stored(layer: Any, length: int) -> int:
    """Return the number of columns that a layer stores after `length` tokens: a sliding window forgets the others."""
    return min(length, layer.sliding_window - 1) if getattr(layer, "is_sliding", False) else length


def _set_length(layer: Any, length: int) -> None:
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length = length


def _fit_columns(tensor: Tensor, columns: int) -> Tensor:
    """Return keys or values `[B, heads, N, d]` with the given number of columns, padded or cut on the left."""
    missing = columns - tensor.shape[-2]
    return nn.functional.pad(tensor, (0, 0, missing, 0)) if missing > 0 else tensor[:, :, -missing:]


def _list_states(layer: Any) -> Iterator[tuple[dict[int, Any], int]]:
    """Yield every recurrent or convolutional state of a layer `[B, ...]`, as a dictionary and its key."""
    for name in ("conv_states", "recurrent_states"):
        states = getattr(layer, name, {})
        yield from ((states, index) for index, state in list(states.items()) if state is not None)


def _get_states(other: Any, own: Any, states: dict[int, Any]) -> dict[int, Any]:
    return other.conv_states if states is own.conv_states else other.recurrent_states
