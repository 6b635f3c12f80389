"""A stock timm `NaFlexVit` as a backbone with two passes: images of any aspect ratio, signals at the values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.naflexvit import NaFlexVit
from torch import Tensor

from toast_cli.plugin import Preprocessing, Readout, State
from toast_timm.any_model import make_wrap
from toast_timm.flat_transformer import BlockContext, FlatTransformer
from toast_timm.patch_grid import infer_patch_grid


@dataclass(frozen=True)
class PatchArguments:
    """What blocks need beside the tokens: the rotary table (one per block if mixed), the additive mask, and `real`."""

    rope: Any = None
    mask: Tensor | None = None
    valid: Tensor | None = None


class NaFlexVitBackbone(FlatTransformer):
    """Any timm `NaFlexVit`. A level is a block.

    Inputs are images `[B, 3, H, W]` of any size and aspect ratio that the patches fill, for which the model resizes its
    position embeddings, or the mapping that timm's NaFlex loader makes from images of different sizes: `patches`
    `[B, N, P * P * 3]`, their rows and columns `patch_coord` `[B, N, 2]`, and `patch_valid` `[B, N]`, False on padding.
    `z` is every token after the model's final norm, before or after pooling; `real` is False on padding, which no real
    token attends to.
    """

    any_image_size = True
    module: NaFlexVit

    def __init__(self, module: NaFlexVit, preprocessing: Preprocessing) -> None:
        super().__init__(module, preprocessing)
        self.takes_prompts = module.rope is None
        self.prefix_tokens = module.num_prefix_tokens

    def enter(self, inputs: Tensor | Mapping[str, Tensor]) -> State:
        """Return tokens `[B, N, d]` with position embeddings, of images or of patches."""
        given = inputs if isinstance(inputs, Mapping) else {"patches": inputs}
        names = ("patch_coord", "patch_valid", "attn_mask")
        embedded = self.module._forward_embeds(given["patches"], *(given.get(name) for name in names))
        rope = embedded["rope_embeds"]
        if self.module.rope_is_mixed and rope is not None:
            rope = tuple(rope)  # timm's iterator gives each block its own
        arguments = PatchArguments(rope, embedded["attn_mask"], embedded["patch_valid"])
        return State(embedded["patches"], BlockContext(arguments))

    def get_arguments(self, index: int, tokens: Tensor, shared: PatchArguments) -> Mapping[str, Any]:
        """Return the mask, and the block's rotary table, if there is one."""
        rope = shared.rope
        rotation = {} if rope is None else {"rope": rope[index] if self.module.rope_is_mixed else rope}
        return {"attn_mask": shared.mask, **rotation}

    def rebuild(self, tokens: Tensor) -> PatchArguments:
        """Return the rotary table of images of the preprocessed size, without a mask."""
        rope = self.module.rope
        return PatchArguments(None if rope is None else rope.get_embed(shape=infer_patch_grid(self, tokens)))

    def leave(self, state: State) -> Readout:
        """Return the tokens after the final norm `[B, N, d]` and the model's own pooled features `[B, d]`."""
        vit = self.module
        valid = None if state.context is None else state.context.shared.valid
        tokens = vit.norm(state.hidden)
        z = vit.fc_norm(tokens)
        pooled = vit.forward_head(tokens, pre_logits=True, patch_valid=valid)
        if valid is None:
            return Readout(z=z, compared=z, pooled=pooled)
        prefix = valid.new_ones((len(valid), self.prefix_tokens), dtype=torch.bool)
        return Readout(z=z, compared=z, pooled=pooled, real=torch.cat((prefix, valid.bool()), dim=1))

    def stock(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Run timm's own forward pass up to the pooled features `[B, d]`."""
        if not isinstance(inputs, Mapping):
            return super().stock(inputs)
        return self.module.forward_head(**self.module.forward_features(**inputs), pre_logits=True)

    def grid(self, inputs: Tensor | Mapping[str, Tensor]) -> tuple[int, int]:
        """Return the rows and columns of patches, or one row of all patches if the grids of a batch differ."""
        if not isinstance(inputs, Mapping):
            rows, columns = self.module.embeds.dynamic_feat_size(tuple(inputs.shape[-2:]))
            return rows, columns
        rows, columns = (int(side) + 1 for side in inputs["patch_coord"].amax(dim=(0, 1)))
        count = inputs["patches"].shape[1]
        return (rows, columns) if rows * columns == count else (1, count)

    def query_tokens(self) -> slice:
        """Return the class token if the model pools it, else all patch tokens."""
        return slice(0, 1) if self.module.global_pool == "token" else slice(self.prefix_tokens, None)


wrap_naflexvit = make_wrap(NaFlexVitBackbone, NaFlexVit, lambda vit: vit.embeds.default_img_size)
