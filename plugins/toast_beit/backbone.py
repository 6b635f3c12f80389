"""A stock timm `Beit` as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.beit import Attention, Beit
from torch import Tensor

from toast_cli.plugin import State
from toast_timm.any_model import make_wrap
from toast_timm.flat_transformer import FlatTransformer


class BeitBackbone(FlatTransformer):
    """Any timm `Beit` (BEiT, BEiTv2). A level is a block.

    Position biases are those of a fixed grid, so images have the size for which the model was built, and no tokens can
    be appended.
    """

    attention_classes = (Attention,)
    prefix_tokens = 1
    module: Beit

    def enter(self, inputs: Tensor) -> State:
        """Return tokens `[B, N, d]` of images `[B, 3, H, W]`, with absolute position embeddings, if any."""
        beit = self.module
        tokens = beit.patch_embed(inputs)
        tokens = torch.cat((beit.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        return State(beit.pos_drop(tokens if beit.pos_embed is None else tokens + beit.pos_embed))

    def get_arguments(self, index: int, tokens: Tensor, shared: Any) -> Mapping[str, Any]:
        """Return the position bias that all blocks share, if any."""
        bias = self.module.rel_pos_bias
        return {"shared_rel_pos_bias": None if bias is None else bias()}

    def query_tokens(self) -> slice:
        """Return the class token if the model pools it, else all patch tokens."""
        return slice(0, 1) if self.module.global_pool == "token" else slice(1, None)


wrap_beit = make_wrap(BeitBackbone, Beit, lambda beit: beit.patch_embed.img_size)
