"""Attention maps of stock attention, recorded where the library computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from toast_cli.plugin import ToastError, upcast_attention_inputs


class MapRecorder(TorchFunctionMode):
    """Inside the block, record the map `[B, heads, N, N]` of each attention, in the order of their computation.

    Fused attention is run as it is, and its map is computed from the arguments that the library passes to it: queries
    and keys after their norms and rotations, and the additive mask or position bias. `mismatches` has the distance of
    the map times the values from the fused output (see `Trace`). Without fused attention, the library's own softmax is
    recorded, and there is no mismatch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []
        self.mismatches: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function, and record it if it is an attention."""
        output = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            self._record(output, *args, **(kwargs or {}))
        elif func is Tensor.softmax:
            self.maps.append(output)
        return output

    def _record(
        self,
        fused: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        if is_causal or enable_gqa:
            raise ToastError(
                "The attention of this model cannot be drawn.",
                "It is causal or shares keys between heads, and toast has no maps of such an attention.",
                "Choose a model whose attention is shown by: toast backbones --check NAME",
                code="attention.no-maps",
            )
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        with upcast_attention_inputs(query, key, value) as (query, key, value):
            scores = query * scale @ key.transpose(-2, -1)
            if attn_mask is not None and attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, float("-inf"))
            elif attn_mask is not None:
                scores = scores + attn_mask
            self.maps.append(scores.softmax(dim=-1))
            mixed = self.maps[-1] @ value
        mismatch = (mixed - fused).abs().amax() / fused.abs().amax().clamp_min(1e-6)
        # Cast only if needed: a traced graph checks the data type at every cast, and keeps all operations before it.
        self.mismatches.append(mismatch if mismatch.dtype == fused.dtype else mismatch.to(fused.dtype))
