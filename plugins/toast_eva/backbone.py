"""A stock timm `Eva` as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import AttentionRope
from timm.models.eva import Eva, EvaAttention
from torch import Tensor
from torch.nn import functional as F

from toast_cli.plugin import Preprocessing, State
from toast_timm.any_model import make_wrap
from toast_timm.flat_transformer import BlockContext, FlatTransformer
from toast_timm.image_size import get_filled_image_size
from toast_timm.patch_grid import infer_patch_grid


def extend_rope(rope: Tensor, tokens: int) -> Tensor:
    """Extend rotary positions to so many tokens. Those beyond the patches (prompts) are not rotated."""
    missing = tokens - rope.shape[-2]
    if missing == 0:
        return rope
    sine, cosine = rope.chunk(2, dim=-1)
    return torch.cat([F.pad(sine, (0, 0, 0, missing)), F.pad(cosine, (0, 0, 0, missing), value=1.0)], dim=-1)


class EvaBackbone(FlatTransformer):
    """Any timm `Eva`. A level is a block.

    Blocks share sine and cosine of the patches' rotary positions, `[N, 2c]` or, mixed, `[levels, heads, N, 2c]`; None
    without them.
    """

    attention_classes = (EvaAttention, AttentionRope)
    takes_prompts = True
    module: Eva

    def __init__(self, module: Eva, preprocessing: Preprocessing) -> None:
        super().__init__(module, preprocessing)
        self.prefix_tokens = module.num_prefix_tokens
        own_pooling = type(module).pool is Eva.pool and type(module).forward_head is Eva.forward_head
        first = module.cls_token is not None and module.global_pool == "token" and module.attn_pool is None
        self.pools_first_token = own_pooling and first

    def enter(self, inputs: Tensor) -> State:
        """Return tokens `[B, N, d]` of images `[B, 3, H, W]`, and their rotary positions."""
        eva = self.module
        tokens, rope = eva._pos_embed(eva.patch_embed(inputs))
        return State(eva.norm_pre(tokens), BlockContext(rope))

    def get_arguments(self, index: int, tokens: Tensor, shared: Tensor | None) -> Mapping[str, Any]:
        """Return the rotary positions of a block for all tokens after the prefix."""
        if shared is None:
            return {}
        rope = shared[index] if self.module.rope_mixed else shared
        return {"rope": extend_rope(rope, tokens.shape[1] - self.prefix_tokens)}

    def rebuild(self, tokens: Tensor) -> Tensor | None:
        """Return the rotary positions of images of the preprocessed size."""
        rope: Any = self.module.rope
        if rope is None:
            return None
        grid = infer_patch_grid(self, tokens)
        fixed = not self.module.dynamic_img_size and hasattr(rope, "feat_shape")
        positions: Tensor = rope.get_embed() if fixed else rope.get_embed(shape=grid)
        return positions

    def query_tokens(self) -> slice:
        """Return the class token, or all patch tokens of a model without one."""
        return slice(0, 1) if self.module.cls_token is not None else slice(self.prefix_tokens, None)


wrap_eva = make_wrap(EvaBackbone, Eva, get_filled_image_size)
