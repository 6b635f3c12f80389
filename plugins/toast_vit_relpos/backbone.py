"""A stock timm `VisionTransformerRelPos` as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer_relpos import RelPosAttention, VisionTransformerRelPos
from torch import Tensor

from toast_cli.plugin import Preprocessing, State
from toast_timm.any_model import make_wrap
from toast_timm.flat_transformer import FlatTransformer


class VitRelPosBackbone(FlatTransformer):
    """Any timm `VisionTransformerRelPos`. A level is a block.

    Position biases are those of a fixed grid, so images have the size for which the model was built, and no tokens can
    be appended.
    """

    attention_classes = (RelPosAttention,)
    module: VisionTransformerRelPos

    def __init__(self, module: VisionTransformerRelPos, preprocessing: Preprocessing) -> None:
        super().__init__(module, preprocessing)
        self.prefix_tokens = module.num_prefix_tokens

    def enter(self, inputs: Tensor) -> State:
        """Return tokens `[B, N, d]` of images `[B, 3, H, W]`, with the class token, if any, in front."""
        tokens = self.module.patch_embed(inputs)
        if self.module.cls_token is not None:
            tokens = torch.cat((self.module.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        return State(tokens)

    def get_arguments(self, index: int, tokens: Tensor, shared: Any) -> Mapping[str, Any]:
        """Return the position bias that all blocks share, if any."""
        bias = self.module.shared_rel_pos
        return {"shared_rel_pos": None if bias is None else bias.get_bias()}

    def query_tokens(self) -> slice:
        """Return the class token if the model pools it, else all patch tokens."""
        return slice(0, 1) if self.module.global_pool == "token" else slice(self.prefix_tokens, None)


wrap_vit_relpos = make_wrap(VitRelPosBackbone, VisionTransformerRelPos, lambda vit: vit.patch_embed.img_size)
