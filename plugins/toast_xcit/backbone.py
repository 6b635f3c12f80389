"""A stock timm `Xcit` as a backbone with two passes: signals enter at the values of cross-covariance attention."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from timm.models.xcit import Xcit
from torch import Tensor

from toast_cli.plugin import Backbone, Level, Preprocessing, Readout, Signal, State, Trace
from toast_timm.loading import get_licence
from toast_timm.patch_grid import infer_patch_grid
from toast_timm.value_rows import steer_value_rows


class XcitBackbone(Backbone):
    """Any timm `Xcit`. A level is a block: cross-covariance attention, local patch interaction and MLP.

    Attention weighs channels, with maps `[B, heads, d_h, d_h]`, so there is no attention over tokens to show. Its
    values are linear in the tokens as in any transformer, `V = W_V (X + X_td) + b_V`, and there signals enter.

    The class-attention stage is the end of the network, as a pooling is: its blocks add a class token, and update the
    patch tokens by themselves alone. `z` is the patch tokens of the last level after the final norm, which are the
    tokens of every level; the class token has no place in the levels.
    """

    adapter_targets = ("qkv",)
    module: Xcit

    def __init__(self, module: Xcit, preprocessing: Preprocessing) -> None:
        self.module = module
        self.blocks: list[Any] = list(module.blocks)
        self.width = self.head_width = module.embed_dim
        self.levels = [Level(self.width, self.width)] * len(self.blocks)
        self.level_modules = self.blocks
        self.preprocessing = preprocessing

    def enter(self, inputs: Tensor) -> State:
        """Return patch tokens `[B, N, d]` of images `[B, 3, H, W]`, with position encodings."""
        xcit = self.module
        tokens, (rows, columns) = xcit.patch_embed(inputs)
        if xcit.pos_embed is not None:
            tokens = tokens + xcit.pos_embed(1, rows, columns).flatten(2).transpose(1, 2)
        return State(xcit.pos_drop(tokens), (rows, columns))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block. The signal `[B, N, d]` is added to the input of the value projection."""
        grid = state.context or infer_patch_grid(self, state.hidden)
        block = self.blocks[index]
        with ExitStack() as attached:
            if signal is not None:
                attached.enter_context(steer_value_rows(block.attn.qkv, 2 * self.width, signal))
            return State(block(state.hidden, *grid), grid)

    def value_weight(self, index: int) -> Tensor:
        """Return the value third of the fused projection, `[d, d]`."""
        weight: Tensor = self.blocks[index].attn.qkv.weight
        return weight[2 * self.width :]

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

    def stock(self, inputs: Tensor) -> Tensor:
        """Run timm's own forward pass up to the pooled features `[B, d]`."""
        return self.module.forward_head(self.module.forward_features(inputs), pre_logits=True)

    @property
    def licence(self) -> str | None:
        """The licence that timm records for published weights."""
        return get_licence(self.module)

    def example(self, batch: int) -> Tensor:
        """Return random images `[batch, 3, H, W]` of the preprocessed size."""
        return torch.randn(batch, 3, *self.require_preprocessing().image_size)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches; the stem's convolutions round half a pixel up."""
        height, width = inputs.shape[-2:]
        patch = self.module.patch_embed.patch_size
        return -(-height // patch), -(-width // patch)
