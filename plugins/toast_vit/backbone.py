"""A stock timm `VisionTransformer` as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from toast_cli.plugin import (
    Backbone,
    LazySignal,
    Level,
    Preprocessing,
    Readout,
    Signal,
    State,
    ToastError,
    Trace,
    ValueSignal,
    resolve_signal,
    upcast_attention_inputs,
)
from toast_timm.loading import get_licence


def compute_signal_values(signal: Signal, attention: Attention, value_bias: str) -> Tensor:
    """Return what a signal `[B, N, d]` adds to the values: its product with the value third of the projection."""
    projection, first = attention.qkv, 2 * attention.attn_dim
    bias = projection.bias[first:] if value_bias == "twice" and projection.bias is not None else None
    if isinstance(signal, ValueSignal):
        return signal.tensor if bias is None else signal.tensor + bias
    return F.linear(signal, projection.weight[first:], bias)


def project_rows(attention: Attention, parts: slice, tokens: Tensor) -> Tensor:
    """Apply some rows of the fused projection to the tokens."""
    weight, bias = attention.qkv.weight, attention.qkv.bias
    return F.linear(tokens, weight[parts], None if bias is None else bias[parts])


def compute_steered_projection(
    attention: Attention, tokens: Tensor, signal: Tensor, value_bias: str, first: int
) -> Tensor:
    """Return the fused projection from row `first` on, with the signal added to the input of its value third.

    One product for tokens and signal costs no more than the projection without a signal, also in the backward pass.
    """
    begin = 2 * attention.attn_dim
    values = project_rows(attention, slice(begin, None), tokens + signal.to(tokens.dtype))
    if value_bias == "twice" and attention.qkv.bias is not None:
        values = values + attention.qkv.bias[begin:]
    return torch.cat([project_rows(attention, slice(first, begin), tokens), values], dim=-1)


@contextmanager
def steer_values(
    attention: Attention, signal: Signal, value_bias: Literal["once", "twice"], projected: bool = False
) -> Iterator[None]:
    """Inside the block, `V = W_V (X + signal) + b_V` (section 3.1, step iv); Q and K are unchanged.

    The signal is `[B, N, d]`. If q, k, v of the tokens are already `projected`, or the projection is not a plain linear
    layer, the contribution of the signal is added to the values.
    """
    if isinstance(signal, Tensor) and not projected and type(attention.qkv) is nn.Linear:
        projection: Any = attention.qkv
        projection.forward = lambda tokens: compute_steered_projection(attention, tokens, signal, value_bias, 0)
        try:
            yield
        finally:
            del projection.forward
        return

    def add_to_values(_: nn.Module, __: object, qkv: Tensor) -> Tensor:
        qkv[..., 2 * attention.attn_dim :] += compute_signal_values(signal, attention, value_bias)
        return qkv

    handle = attention.qkv.register_forward_hook(add_to_values)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def record_attention(attention: Attention, maps: list[Tensor], mismatches: list[Tensor]) -> Iterator[None]:
    """Append the softmax map `[B, heads, N, N]` inside the block, from the projection that fused attention uses.

    Also append its mismatch, the distance of the map times the values from the output of fused attention (see `Trace`).
    """
    mixed: list[Tensor] = []

    def record(_: nn.Module, __: object, qkv: Tensor) -> None:
        q, k, v = qkv.unflatten(-1, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = attention.q_norm(q), attention.k_norm(k)
        with upcast_attention_inputs(q, k, v) as (q, k, v):
            maps.append((q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1))
            mixed.append((maps[-1] @ v).transpose(1, 2).flatten(2))

    def compare(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        fused = inputs[0]
        mismatch = (mixed.pop() - fused).abs().amax() / fused.abs().amax().clamp_min(1e-6)
        # Cast only if needed: a traced graph checks the data type at every cast, and keeps all operations before it.
        mismatches.append(mismatch if mismatch.dtype == fused.dtype else mismatch.to(fused.dtype))

    handles = [attention.qkv.register_forward_hook(record), attention.norm.register_forward_pre_hook(compare)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def reuse_projection(attention: Attention, projected: list[Tensor], place: int) -> Iterator[None]:
    """Take the fused projection from `projected[place]` inside the block, or store it there the first time."""
    projection = attention.qkv
    if place < len(projected):
        projection.forward = lambda _: projected[place].clone()  # signals are added in place
        try:
            yield
        finally:
            del projection.forward
        return
    handle = projection.register_forward_hook(lambda _, __, qkv: projected.append(qkv.clone()))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def attend_from_leading_tokens(block: Block, hidden: Tensor, signal: Signal | None, value_bias: str) -> Iterator[None]:
    """Make a block, called with the first of the tokens `hidden`, attend from those to all tokens inside the block.

    Apart from attention, a block processes each token by itself, so the other tokens are only needed as keys and
    values. This is timm's `Attention.forward` with fewer queries than keys.
    """
    attention: Any = block.attn

    def attend(first: Tensor, **_: object) -> Tensor:
        B, rows, _d = first.shape
        width, heads = attention.attn_dim, attention.num_heads
        tokens = block.norm1(hidden)
        q = project_rows(attention, slice(width), first)
        if isinstance(signal, Tensor):
            kv = compute_steered_projection(attention, tokens, signal, value_bias, width)
        else:
            kv = project_rows(attention, slice(width, None), tokens)
        k, v = kv.split(width, dim=-1)
        if isinstance(signal, ValueSignal):
            v = v + compute_signal_values(signal, attention, value_bias)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(attention.q_norm(q), attention.k_norm(k), v)
        return attention.proj(attention.norm(out.transpose(1, 2).reshape(B, rows, width)))

    attention.forward = attend
    try:
        yield
    finally:
        del attention.forward


@dataclass
class ProjectionCache:
    """The fused projections of a block (one per attention) for the tokens that both passes share."""

    index: int
    qkv: list[Tensor] = field(default_factory=list)


def is_stock_block(block: nn.Module) -> bool:
    """Return whether a block is timm's standard block with an unchanged projection."""
    attention: Any = getattr(block, "attn", None)
    if type(block) is not Block or type(attention) is not Attention:
        return False
    return type(attention.qkv) is nn.Linear and getattr(attention, "gate", None) is None


class VitBackbone(Backbone):
    """Any timm `VisionTransformer`. A level is a block.

    `z` is every token after the model's final norm, including class token and registers, as in the authors' code.
    Models that pool before the norm (average pooling) apply the norm to the tokens for `z`, and keep their own order
    for the pooled features.

    Raises:
        ToastError: The model is not a `VisionTransformer`, or its blocks have no fused q, k, v projection.
    """

    has_attention = True
    adapter_targets = ("qkv",)
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
        self.attentions = [[part for part in block.modules() if isinstance(part, Attention)] for block in module.blocks]
        if not all(self.attentions):
            raise ToastError(
                f"The blocks of this {name} have no q, k, v projection of their own.",
                "TOAST adds its signal to the values, and these blocks fuse the values with other parts.",
                "Choose a ViT with ordinary attention blocks.",
                code="backbone.cannot-steer",
            )
        self.module = module
        self.width = self.head_width = module.embed_dim
        self.levels = [Level(self.width, self.width)] * len(module.blocks)
        self.level_modules = list(module.blocks)
        self.preprocessing = preprocessing
        self.prefix_tokens = module.num_prefix_tokens
        own_pooling = type(module).forward_head is VisionTransformer.forward_head  # a distilled DeiT pools two tokens
        first = module.has_class_token and module.global_pool == "token" and module.attn_pool is None
        self._pools_first_token = own_pooling and first
        self.value_bias: Literal["once", "twice"] = value_bias

    def enter(self, inputs: Tensor) -> State:
        """Return tokens `[B, N, d]` of images `[B, 3, H, W]`, with position embeddings and the model's first norm."""
        vit = self.module
        tokens = vit._pos_embed(vit.patch_embed(inputs))
        return State(vit.norm_pre(vit.patch_drop(tokens)))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block. The signal `[B, N, d]` is added to the input of the value projection."""
        maps: list[Tensor] | None = [] if trace is not None and index in trace.attention_of else None
        mismatches: list[Tensor] = []
        attentions = self.attentions[index]
        signals: list[Signal | None] = [signal] * len(attentions)
        if isinstance(signal, ValueSignal):  # those of a block's parallel attentions are concatenated
            signals = [
                ValueSignal(part) for part in signal.tensor.split([part.attn_dim for part in attentions], dim=-1)
            ]
        with ExitStack() as attached:
            for place, (attention, own) in enumerate(zip(attentions, signals, strict=True)):
                cached = state.context is not None and state.context.index == index
                if cached:
                    attached.enter_context(reuse_projection(attention, state.context.qkv, place))
                if own is not None:
                    attached.enter_context(steer_values(attention, own, self.value_bias, cached))
                if maps is not None:
                    attached.enter_context(record_attention(attention, maps, mismatches))
            hidden = self.module.blocks[index](state.hidden)
        if trace is not None and maps is not None:
            trace.attention[index] = torch.cat(maps, dim=1)
            trace.mismatch[index] = torch.stack(mismatches).amax()
        return State(hidden)

    def keep(self, state: State, index: int) -> State:
        """Cache q, k, v of the first steered block, which projects the same tokens in both passes.

        With gradient checkpointing, nothing is cached.
        """
        return state if self.checkpointing else State(state.hidden, ProjectionCache(index))

    def conclude(self, state: State, signal: Signal | LazySignal | None = None) -> Tensor:
        """Return the pooled features. If they are the class token, the last block attends from that token only."""
        vit, block = self.module, self.module.blocks[-1]
        if not (self._pools_first_token and is_stock_block(block)):
            return super().conclude(state, signal)

        def attend(hidden: Tensor) -> Tensor:
            with attend_from_leading_tokens(block, hidden, resolve_signal(signal), self.value_bias):
                return block(hidden[:, :1])

        tokens = checkpoint(attend, state.hidden, use_reentrant=False) if self.checkpointing else attend(state.hidden)
        return vit.forward_head(vit.norm(tokens), pre_logits=True)

    def value_weight(self, index: int) -> Tensor:
        """Return the value third of every attention's fused projection, `[values, d]`."""
        return torch.cat([part.qkv.weight[2 * part.attn_dim :] for part in self.attentions[index]])

    def leave(self, state: State) -> Readout:
        """Return the tokens after the final norm `[B, N, d]` and the model's own pooled features `[B, d]`."""
        vit = self.module
        tokens = vit.norm(state.hidden)
        z = vit.fc_norm(tokens)
        return Readout(z=z, compared=z, pooled=vit.forward_head(tokens, pre_logits=True))

    def stock(self, inputs: Tensor) -> Tensor:
        """Run timm's own forward pass up to the pooled features `[B, d]`."""
        return self.module.forward_head(self.module.forward_features(inputs), pre_logits=True)

    @property
    def licence(self) -> str | None:
        """The licence that timm records for published weights."""
        return get_licence(self.module)

    def example(self, batch: int) -> Tensor:
        """Return random images `[batch, 3, H, W]` of the model's input size."""
        return torch.randn(batch, 3, *self.require_preprocessing().image_size)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches for these images."""
        embed = self.module.patch_embed
        rows, columns = embed.dynamic_feat_size(inputs.shape[-2:]) if self.module.dynamic_img_size else embed.grid_size
        return rows, columns

    def query_tokens(self) -> slice:
        """Return the class token, or all patch tokens of a model without one."""
        return slice(0, 1) if self.module.has_class_token else slice(self.prefix_tokens, None)
