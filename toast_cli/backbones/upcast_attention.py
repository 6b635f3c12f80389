"""Numerics of attention maps that are computed next to fused attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def upcast_attention_inputs(query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Cast q, k and v as scaled_dot_product_attention does, so that an explicit map matches its result.

    Fused attention receives the inputs as autocast makes them, in the data type of the values, and accumulates in
    float32. Inside the block, autocast is disabled so that the map is not computed in half precision.
    """
    import torch

    kind = torch.promote_types(value.dtype, torch.float32)
    cast = tuple(tensor.to(value.dtype).to(kind) for tensor in (query, key, value))
    device = value.device.type
    # Only if autocast is on: a traced graph would otherwise keep the block.
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        yield cast  # type: ignore[misc]
