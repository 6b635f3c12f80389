"""A stock timm `VisionTransformer` as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from typing import Literal

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from toast_cli.plugin import Preprocessing, State, ToastError
from toast_timm.flat_transformer import FlatTransformer


class VitBackbone(FlatTransformer):
    """Any timm `VisionTransformer`. A level is a block.

    `z` is every token, as in the authors' code. Differential attention subtracts two maps, so it has no map whose rows
    are weights.

    Raises:
        ToastError: The model is not a `VisionTransformer`, or its blocks have no value projection of their own.
    """

    takes_prompts = True
    signal_entry = "the input of the value projection of every block; queries and keys do not change"
    module: VisionTransformer

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Preprocessing,
        value_bias: Literal["once", "twice"] = "once",
    ) -> None:
        name = type(module).__name__
        if not isinstance(module, VisionTransformer):
            raise ToastError(
                f"{name} is not a timm VisionTransformer.",
                what_to_do="Choose a ViT or DeiT model, or the plugin of its family.",
                code="backbone.wrong-family",
            )
        super().__init__(module, preprocessing)
        self.prefix_tokens = module.num_prefix_tokens
        own_pooling = type(module).forward_head is VisionTransformer.forward_head  # a distilled DeiT pools two tokens
        first = module.has_class_token and module.global_pool == "token" and module.attn_pool is None
        self.pools_first_token = own_pooling and first
        self.value_bias = value_bias

    def enter(self, inputs: Tensor) -> State:
        """Return tokens `[B, N, d]` of images `[B, 3, H, W]`, with position embeddings and the model's first norm."""
        vit = self.module
        tokens = vit._pos_embed(vit.patch_embed(inputs))
        return State(vit.norm_pre(vit.patch_drop(tokens)))

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches for these images."""
        embed = self.module.patch_embed
        rows, columns = embed.dynamic_feat_size(inputs.shape[-2:]) if self.module.dynamic_img_size else embed.grid_size
        return rows, columns

    def query_tokens(self) -> slice:
        """Return the class token, or all patch tokens of a model without one."""
        return slice(0, 1) if self.module.has_class_token else slice(self.prefix_tokens, None)
