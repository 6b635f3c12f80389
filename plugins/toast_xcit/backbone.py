"""A stock timm `Xcit` as a backbone with two passes: signals enter at the values of cross-covariance attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models.xcit import XCA, Xcit
from torch import Tensor

from toast_cli.plugin import Readout, State
from toast_timm.any_model import make_wrap
from toast_timm.flat_transformer import BlockContext, FlatTransformer
from toast_timm.patch_grid import infer_patch_grid


class XcitBackbone(FlatTransformer):
    """Any timm `Xcit`. A level is a block: cross-covariance attention, local patch interaction and MLP.

    Attention weighs channels, with maps `[B, heads, d_h, d_h]`, so there is no attention over tokens to show. Its
    values are linear in the tokens as in any transformer, `V = W_V (X + X_td) + b_V`, and there signals enter.

    The class-attention stage is the end of the network, as a pooling is: its blocks add a class token, and update the
    patch tokens by themselves alone. `z` is the patch tokens of the last level after the final norm, which are the
    tokens of every level; the class token has no place in the levels.
    """

    has_attention = False
    attention_classes = (XCA,)
    module: Xcit

    def enter(self, inputs: Tensor) -> State:
        """Return patch tokens `[B, N, d]` of images `[B, 3, H, W]`, with position encodings."""
        xcit = self.module
        tokens, (rows, columns) = xcit.patch_embed(inputs)
        if xcit.pos_embed is not None:
            tokens = tokens + xcit.pos_embed(1, rows, columns).flatten(2).transpose(1, 2)
        return State(xcit.pos_drop(tokens), BlockContext((rows, columns)))

    def get_arguments(self, index: int, tokens: Tensor, shared: tuple[int, int]) -> Mapping[str, Any]:
        """Return the rows and columns of the patches, which the local patch interaction needs."""
        rows, columns = shared
        return {"H": rows, "W": columns}

    def rebuild(self, tokens: Tensor) -> tuple[int, int]:
        """Return the rows and columns of images of the preprocessed size."""
        return infer_patch_grid(self, tokens)

    def leave(self, state: State) -> Readout:
        """Return the patch tokens after the final norm `[B, N, d]`, and the pooled features of class attention."""
        xcit = self.module
        z = xcit.norm(state.hidden)
        if xcit.cls_attn_blocks is None:
            return Readout(z=z, compared=z, pooled=xcit.forward_head(z, pre_logits=True))
        tokens = xcit.norm(xcit.forward_cls(state.hidden))
        return Readout(z=z, compared=z, pooled=xcit.forward_head(tokens, pre_logits=True))

    def tap(self, state: State) -> Readout:
        """Return the patch tokens after the final norm, without the class-attention stage."""
        z = self.module.norm(state.hidden)
        return Readout(z=z, compared=z, pooled=z.mean(dim=1))

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches; the stem's convolutions round half a pixel up."""
        height, width = inputs.shape[-2:]
        patch = self.module.patch_embed.patch_size
        return -(-height // patch), -(-width // patch)


wrap_xcit = make_wrap(XcitBackbone, Xcit)
