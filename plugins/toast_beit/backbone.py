"""A stock timm `Beit` as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.beit import Beit
from torch import Tensor

from toast_cli.plugin import Preprocessing, Readout, State
from toast_timm.any_model import set_timm_origin
from toast_timm.flat_transformer import FlatTransformer
from toast_timm.loading import get_preprocessing
from toast_timm.value_projection import ValueProjection


class BeitBackbone(FlatTransformer):
    """Any timm `Beit` (BEiT, BEiTv2). A level is a block.

    `z` is every token, class token included, after the model's final norm. Models that average the patches have that
    norm after pooling: it is applied to the tokens for `z`, and pooled features keep their own order. Position biases
    are those of a fixed grid, so images have the size for which the model was built, and no tokens can be appended.
    """

    prefix_tokens = 1
    module: Beit

    def __init__(self, module: Beit, preprocessing: Preprocessing) -> None:
        blocks = list(module.blocks)
        projections = [[ValueProjection(block.attn, "qkv", block.attn.qkv.out_features // 3)] for block in blocks]
        super().__init__(module, blocks, projections, preprocessing)

    def enter(self, inputs: Tensor) -> State:
        """Return tokens `[B, N, d]` of images `[B, 3, H, W]`, with absolute position embeddings, if any."""
        beit = self.module
        tokens = beit.patch_embed(inputs)
        tokens = torch.cat((beit.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        return State(beit.pos_drop(tokens if beit.pos_embed is None else tokens + beit.pos_embed))

    def run_block(self, index: int, hidden: Tensor, arguments: Any) -> Tensor:
        """Run one stock block, with the position bias that all blocks share, if any."""
        beit = self.module
        bias = None if beit.rel_pos_bias is None else beit.rel_pos_bias()
        tokens: Tensor = beit.blocks[index](hidden, shared_rel_pos_bias=bias)
        return tokens

    def leave(self, state: State) -> Readout:
        """Return the tokens after the final norm `[B, N, d]` and the model's own pooled features `[B, d]`."""
        beit = self.module
        tokens = beit.norm(state.hidden)
        z = beit.fc_norm(tokens)
        return Readout(z=z, compared=z, pooled=beit.forward_head(tokens, pre_logits=True))

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches."""
        rows, columns = self.module.patch_embed.grid_size
        return rows, columns

    def query_tokens(self) -> slice:
        """Return the class token if the model pools it, else all patch tokens."""
        return slice(0, 1) if self.module.global_pool == "token" else slice(1, None)


def wrap_beit(module: Any) -> BeitBackbone | None:
    """Return the backbone of a timm BEiT, or None for any other module.

    Raises:
        UsageError: The model does not read RGB images.
    """
    if not isinstance(module, Beit):
        return None
    backbone = BeitBackbone(module, get_preprocessing(module, module.patch_embed.img_size))
    set_timm_origin(backbone, module)
    return backbone
