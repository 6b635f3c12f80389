"""A stock timm `VisionTransformer` as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from typing import Any, Literal

from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from toast_cli.plugin import (
    LazySignal,
    Preprocessing,
    Readout,
    Signal,
    State,
    ToastError,
    ValueSignal,
    resolve_signal,
)
from toast_timm.flat_transformer import FlatTransformer
from toast_timm.value_projection import ValueProjection, find_value_projections, is_differential, replace_forward


def attend_from_leading_tokens(
    block: Block, projection: ValueProjection, hidden: Tensor, signal: Signal | None, bias_twice: bool
) -> Tensor:
    """Run a block on the first of the tokens `hidden`, which attends to all of them.

    Apart from attention, a block processes each token by itself, so the other tokens are only needed as keys and
    values. This is timm's `Attention.forward` with fewer queries than keys.
    """
    attention: Any = block.attn

    def attend(first: Tensor, **_: object) -> Tensor:
        B, rows, _d = first.shape
        width, heads = attention.attn_dim, attention.num_heads
        tokens = block.norm1(hidden)
        q = projection.project(first, slice(width))
        if isinstance(signal, Tensor):
            kv = projection.project_steered(tokens, signal, bias_twice, first=width)
        else:
            kv = projection.project(tokens, slice(width, None))
        k, v = kv.split(width, dim=-1)
        if isinstance(signal, ValueSignal):
            v = v + projection.project_signal(signal, bias_twice)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(attention.q_norm(q), attention.k_norm(k), v)
        return attention.proj(attention.norm(out.transpose(1, 2).reshape(B, rows, width)))

    with replace_forward(attention, attend):
        return block(hidden[:, :1])


def is_stock_block(block: nn.Module) -> bool:
    """Return whether a block is timm's standard block with an unchanged projection."""
    attention: Any = getattr(block, "attn", None)
    if type(block) is not Block or type(attention) is not Attention:
        return False
    return type(attention.qkv) is nn.Linear and getattr(attention, "gate", None) is None


class VitBackbone(FlatTransformer):
    """Any timm `VisionTransformer`. A level is a block.

    `z` is every token after the model's final norm, including class token and registers, as in the authors' code.
    Models that pool before the norm (average pooling) apply the norm to the tokens for `z`, and keep their own order
    for the pooled features. Differential attention subtracts two maps, so it has no map whose rows are weights.

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
        projections = [find_value_projections(block) for block in module.blocks]
        if not all(projections):
            raise ToastError(
                f"The blocks of this {name} have no value projection that toast knows.",
                "TOAST adds its signal to the input of the values.",
                "Choose a ViT with ordinary attention blocks.",
                code="backbone.cannot-steer",
            )
        super().__init__(module, list(module.blocks), projections, preprocessing)
        every = [projection for block in projections for projection in block]
        self.has_attention = not any(is_differential(projection) for projection in every)
        self.adapter_targets = sorted({projection.name for projection in every})
        self.prefix_tokens = module.num_prefix_tokens
        own_pooling = type(module).forward_head is VisionTransformer.forward_head  # a distilled DeiT pools two tokens
        first = module.has_class_token and module.global_pool == "token" and module.attn_pool is None
        self._pools_first_token = own_pooling and first
        self.value_bias = value_bias

    def enter(self, inputs: Tensor) -> State:
        """Return tokens `[B, N, d]` of images `[B, 3, H, W]`, with position embeddings and the model's first norm."""
        vit = self.module
        tokens = vit._pos_embed(vit.patch_embed(inputs))
        return State(vit.norm_pre(vit.patch_drop(tokens)))

    def run_block(self, index: int, hidden: Tensor, arguments: Any) -> Tensor:
        """Run one stock block."""
        tokens: Tensor = self.module.blocks[index](hidden)
        return tokens

    def conclude(self, state: State, signal: Signal | LazySignal | None = None) -> Tensor:
        """Return the pooled features. If they are the class token, the last block attends from that token only."""
        vit, block = self.module, self.module.blocks[-1]
        if not (self._pools_first_token and is_stock_block(block)):
            return super().conclude(state, signal)
        (projection,) = self.projections[-1]

        def attend(hidden: Tensor) -> Tensor:
            bias_twice = self.value_bias == "twice"
            return attend_from_leading_tokens(block, projection, hidden, resolve_signal(signal), bias_twice)

        tokens = checkpoint(attend, state.hidden, use_reentrant=False) if self.checkpointing else attend(state.hidden)
        return vit.forward_head(vit.norm(tokens), pre_logits=True)

    def leave(self, state: State) -> Readout:
        """Return the tokens after the final norm `[B, N, d]` and the model's own pooled features `[B, d]`."""
        vit = self.module
        tokens = vit.norm(state.hidden)
        z = vit.fc_norm(tokens)
        return Readout(z=z, compared=z, pooled=vit.forward_head(tokens, pre_logits=True))

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches for these images."""
        embed = self.module.patch_embed
        rows, columns = embed.dynamic_feat_size(inputs.shape[-2:]) if self.module.dynamic_img_size else embed.grid_size
        return rows, columns

    def query_tokens(self) -> slice:
        """Return the class token, or all patch tokens of a model without one."""
        return slice(0, 1) if self.module.has_class_token else slice(self.prefix_tokens, None)
