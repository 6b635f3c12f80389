"""Fused attention gives no map; what a family's own map of the same numbers needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def upcast_attention_inputs(query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What fused attention is given, for a map of the same numbers that rounds no more than fused attention does.

    That one is given what autocast makes of them, the values' type, and adds up in single precision; within the block
    autocast does not bring the map's sums back to half.
    """
    import torch

    kind = torch.promote_types(value.dtype, torch.float32)
    given = tuple(tensor.to(value.dtype).to(kind) for tensor in (query, key, value))
    where = value.device.type
    # Only where it is on: a graph that is traced keeps the block otherwise.
    with torch.autocast(where, enabled=False) if torch.is_autocast_enabled(where) else nullcontext():
        yield given  # type: ignore[misc]
