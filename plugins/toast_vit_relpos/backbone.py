"""A stock timm `VisionTransformerRelPos` as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor

from toast_cli.plugin import Preprocessing, Readout, State
from toast_timm.any_model import set_timm_origin
from toast_timm.flat_transformer import FlatTransformer
from toast_timm.loading import get_preprocessing
from toast_timm.value_projection import ValueProjection


class VitRelPosBackbone(FlatTransformer):
    """Any timm `VisionTransformerRelPos`. A level is a block.

    `z` is every token after the model's final norm, before or after pooling. Position biases are those of a fixed grid,
    so images have the size for which the model was built, and no tokens can be appended.
    """

    module: VisionTransformerRelPos

    def __init__(self, module: VisionTransformerRelPos, preprocessing: Preprocessing) -> None:
        blocks = list(module.blocks)
        projections = [[ValueProjection(block.attn, "qkv", block.attn.qkv.out_features // 3)] for block in blocks]
        super().__init__(module, blocks, projections, preprocessing)
        self.prefix_tokens = module.num_prefix_tokens

    def enter(self, inputs: Tensor) -> State:
        """Return tokens `[B, N, d]` of images `[B, 3, H, W]`, with the class token, if any, in front."""
        tokens = self.module.patch_embed(inputs)
        if self.module.cls_token is not None:
            tokens = torch.cat((self.module.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        return State(tokens)

    def run_block(self, index: int, hidden: Tensor, arguments: Any) -> Tensor:
        """Run one stock block, with the position bias that all blocks share, if any."""
        shared = self.module.shared_rel_pos
        bias = None if shared is None else shared.get_bias()
        tokens: Tensor = self.module.blocks[index](hidden, shared_rel_pos=bias)
        return tokens

    def leave(self, state: State) -> Readout:
        """Return the tokens after the final norm `[B, N, d]` and the model's own pooled features `[B, d]`."""
        tokens = self.module.norm(state.hidden)
        z = self.module.fc_norm(tokens)
        return Readout(z=z, compared=z, pooled=self.module.forward_head(tokens, pre_logits=True))

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches."""
        rows, columns = self.module.patch_embed.grid_size
        return rows, columns

    def query_tokens(self) -> slice:
        """Return the class token if the model pools it, else all patch tokens."""
        return slice(0, 1) if self.module.global_pool == "token" else slice(self.prefix_tokens, None)


def wrap_vit_relpos(module: Any) -> VitRelPosBackbone | None:
    """Return the backbone of a timm ViT with relative positions, or None for any other module.

    Raises:
        UsageError: The model does not read RGB images.
    """
    if not isinstance(module, VisionTransformerRelPos):
        return None
    backbone = VitRelPosBackbone(module, get_preprocessing(module, module.patch_embed.img_size))
    set_timm_origin(backbone, module)
    return backbone
