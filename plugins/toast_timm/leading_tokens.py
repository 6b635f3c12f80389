"""Attention from the first token alone, for a last block whose other outputs nothing reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.plugin import Signal, ValueSignal
from toast_timm.value_projection import ValueProjection, replace_forward


def is_stock_block(block: nn.Module, projection: ValueProjection) -> bool:
    """Return whether a block and its attention are timm's standard ones with unchanged projections."""
    attention: Any = getattr(block, "attn", None)
    if type(block) not in (Block, EvaBlock, EvaBlockPostNorm):
        return False
    if type(attention) not in (Attention, AttentionRope, EvaAttention) or getattr(attention, "gate", None) is not None:
        return False
    return all(type(getattr(attention, name)) is nn.Linear for name in projection.names)


@contextmanager
def attend_from_first_token(
    block: Any, projection: ValueProjection, hidden: Tensor, signal: Signal | None, bias_twice: bool
) -> Iterator[None]:
    """Inside the block, make a stock block that is called with the first of the tokens `hidden` attend to all of them.

    Apart from attention, a block processes each token by itself, so the other tokens are only needed as keys and
    values. This is timm's forward with one query, a prefix token, which has no rotary position.
    """
    attention = block.attn

    def attend(first: Tensor, rope: Tensor | None = None, **_: object) -> Tensor:
        tokens = hidden if isinstance(block, EvaBlockPostNorm) else block.norm1(hidden)
        q, k, v = (
            part.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for part in _project(projection, first, tokens, signal, bias_twice)
        )
        q, k = attention.q_norm(q), attention.k_norm(k)
        if rope is not None:
            prefix = attention.num_prefix_tokens
            rotated = apply_rot_embed_cat(k[:, :, prefix:], rope, half=attention.rotate_half)
            q, k = q.type_as(v), torch.cat([k[:, :, :prefix], rotated], dim=2).type_as(v)
        if (groups := attention.num_heads // k.shape[1]) > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = F.scaled_dot_product_attention(q, k, v)
        return attention.proj(attention.norm(out.transpose(1, 2).flatten(2)))

    with replace_forward(attention, attend):
        yield


def _project(
    projection: ValueProjection, first: Tensor, tokens: Tensor, signal: Signal | None, bias_twice: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q of the first token, k of all tokens, and v of all with the signal."""
    width = min(projection.width, projection.begin)
    if isinstance(signal, Tensor):
        projected = projection.project_steered(tokens, signal, bias_twice, first=width)
    else:
        projected = projection.project(tokens, slice(width, None))
    if projection.begin:
        q = projection.project(first, slice(width))
        k, v = projected.split(width, dim=-1)
    else:
        attention: Any = projection.attention
        q, k, v = attention.q_proj(first), attention.k_proj(tokens), projected
    return q, k, v + projection.project_signal(signal, bias_twice) if isinstance(signal, ValueSignal) else v
