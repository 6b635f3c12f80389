"""Attention maps of timm's `AttentionRope`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from timm.layers import AttentionRope, apply_rot_embed_cat
from torch import Tensor, nn

from toast_cli.plugin import upcast_attention_inputs


@contextmanager
def record_rotary_attention(
    attention: AttentionRope, rope: Tensor, recorded: list[tuple[Tensor, Tensor]]
) -> Iterator[None]:
    """Append the softmax map `[B, heads, N, N]` and its mismatch inside the block (see `Trace`).

    The map is computed from the projection that fused attention uses, with q and k normalized and rotated as there. The
    mismatch is the distance of the map times the values from the output of fused attention.
    """
    computed: list[tuple[Tensor, Tensor]] = []

    def record(_: nn.Module, __: object, qkv: Tensor) -> None:
        q, k, v = qkv.unflatten(-1, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = (
            apply_rot_embed_cat(part, rope, half=attention.rotate_half).type_as(v)
            for part in (attention.q_norm(q), attention.k_norm(k))
        )
        with upcast_attention_inputs(q, k, v) as (q, k, v):
            weights = (q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1)
            computed.append((weights, (weights @ v).transpose(1, 2).flatten(2)))

    def compare(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (weights, mixed), fused = computed.pop(), inputs[0]
        mismatch = (mixed - fused).abs().amax() / fused.abs().amax().clamp_min(1e-6)
        recorded.append((weights, mismatch.to(fused.dtype) if mismatch.dtype != fused.dtype else mismatch))

    handles = [attention.qkv.register_forward_hook(record), attention.norm.register_forward_pre_hook(compare)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
