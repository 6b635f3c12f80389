"""A stock timm `VisionTransformer` as a backbone that can run twice: signals enter at the values."""

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
    """What a signal `[B, N, d]` adds to the values: what their third of the projection makes of it."""
    projection, first = attention.qkv, 2 * attention.attn_dim
    bias = projection.bias[first:] if value_bias == "twice" and projection.bias is not None else None
    if isinstance(signal, ValueSignal):
        return signal.tensor if bias is None else signal.tensor + bias
    return F.linear(signal, projection.weight[first:], bias)


def project_rows(attention: Attention, parts: slice, tokens: Tensor) -> Tensor:
    """What some rows of the fused projection make of the tokens."""
    weight, bias = attention.qkv.weight, attention.qkv.bias
    return F.linear(tokens, weight[parts], None if bias is None else bias[parts])


def compute_steered_projection(
    attention: Attention, tokens: Tensor, signal: Tensor, value_bias: str, first: int
) -> Tensor:
    """`[..., V]`: the fused projection from row `first` on, its value third of the tokens and the signal together.

    One product for both costs no more than the projection does without a signal, backwards as well.
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
    """Within the block, `V = W_V (X + signal) + b_V` (section 3.1, step iv); Q and K stay untouched.

    The signal is `[B, N, d]`. Where q, k, v of the tokens are `projected` already, or the projection is no plain layer,
    what the signal adds is added to them.
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
    """Within the block, append the softmax map `[B, heads, N, N]`, from the projection that fused attention uses.

    Beside it goes how far the map times the values is from what fused attention puts out (see `Trace`).
    """
    mixed: list[Tensor] = []

    def record(_: nn.Module, __: object, qkv: Tensor) -> None:
        q, k, v = qkv.unflatten(-1, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = attention.q_norm(q), attention.k_norm(k)
        with upcast_attention_inputs(q, k, v) as (q, k, v):
            maps.append((q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1))
            mixed.append((maps[-1] @ v).transpose(1, 2).flatten(2))

    def compare(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        fused = given[0]
        mismatch = (mixed.pop() - fused).abs().amax() / fused.abs().amax().clamp_min(1e-6)
        # Never cast for nothing: a traced graph checks the type at every cast, and keeps all that leads to it.
        mismatches.append(mismatch if mismatch.dtype == fused.dtype else mismatch.to(fused.dtype))

    handles = [attention.qkv.register_forward_hook(record), attention.norm.register_forward_pre_hook(compare)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def reuse_projection(attention: Attention, projected: list[Tensor], place: int) -> Iterator[None]:
    """Within the block, take the fused projection from `projected[place]`; where it is not there yet, put it there."""
    projection = attention.qkv
    if place < len(projected):
        projection.forward = lambda _: projected[place].clone()  # signals are added to it in place
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
    """Within the block, called with the first of the tokens `hidden`, attend from those to all of them.

    What a block does besides attention it does to each token by itself, so the tokens that it is not given are only
    looked at. This is timm's `Attention.forward` with fewer queries than keys.
    """
    attention: Any = block.attn

    def attend(first: Tensor, **_: object) -> Tensor:
        B, rows, _d = first.shape
        width, heads = attention.attn_dim, attention.num_heads
        whole = block.norm1(hidden)
        q = project_rows(attention, slice(width), first)
        if isinstance(signal, Tensor):
            kv = compute_steered_projection(attention, whole, signal, value_bias, width)
        else:
            kv = project_rows(attention, slice(width, None), whole)
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
    """What a block's fused projections (one per attention) made of the tokens that both passes give it."""

    index: int
    qkv: list[Tensor] = field(default_factory=list)


def is_stock_block(block: nn.Module) -> bool:
    """Whether a block is timm's ordinary one and nobody has put anything on its projection."""
    attention: Any = getattr(block, "attn", None)
    if type(block) is not Block or type(attention) is not Attention:
        return False
    return type(attention.qkv) is nn.Linear and getattr(attention, "gate", None) is None


class VitBackbone(Backbone):
    """Any timm `VisionTransformer`; a level is a block.

    `z` is every token after the model's final norm, class token and registers included, as in the authors' code. Models
    that pool first and norm after (average pooling) have their norm applied to the tokens for `z`, and keep their own
    order for the pooled features.

    Raises:
        ToastError: the model is no `VisionTransformer`, or its blocks hold no fused q, k, v projection to steer.
    """

    has_attention = True
    adapter_targets = ("qkv",)
    takes_prompts = True
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
                "TOAST adds its signal to the values, and these blocks fuse them with something else.",
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
        """Images `[B, 3, H, W]` to tokens `[B, N, d]`, position embeddings and the model's own first norm included."""
        vit = self.module
        tokens = vit._pos_embed(vit.patch_embed(inputs))
        return State(vit.norm_pre(vit.patch_drop(tokens)))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block; the signal `[B, N, d]` is added to what its attention projects to values."""
        maps: list[Tensor] | None = [] if trace is not None and index in trace.attention_of else None
        mismatches: list[Tensor] = []
        attentions = self.attentions[index]
        signals: list[Signal | None] = [signal] * len(attentions)
        if isinstance(signal, ValueSignal):  # those of a block's parallel attentions lie one behind the other
            signals = [
                ValueSignal(part) for part in signal.tensor.split([part.attn_dim for part in attentions], dim=-1)
            ]
        with ExitStack() as attached:
            for place, (attention, own) in enumerate(zip(attentions, signals, strict=True)):
                kept = state.context is not None and state.context.index == index
                if kept:
                    attached.enter_context(reuse_projection(attention, state.context.qkv, place))
                if own is not None:
                    attached.enter_context(steer_values(attention, own, self.value_bias, kept))
                if maps is not None:
                    attached.enter_context(record_attention(attention, maps, mismatches))
            hidden = self.module.blocks[index](state.hidden)
        if trace is not None and maps is not None:
            trace.attention[index] = torch.cat(maps, dim=1)
            trace.mismatch[index] = torch.stack(mismatches).amax()
        return State(hidden)

    def keep(self, state: State, index: int) -> State:
        """The first steered block projects the same tokens in both passes: the second finds q, k, v here.

        Not where memory is worth more than time.
        """
        return state if self.checkpointing else State(state.hidden, ProjectionCache(index))

    def conclude(self, state: State, signal: Signal | LazySignal | None = None) -> Tensor:
        """With a class token to pool, the last block attends from that token alone."""
        vit, block = self.module, self.module.blocks[-1]
        if not (self._pools_first_token and is_stock_block(block)):
            return super().conclude(state, signal)

        def attend(hidden: Tensor) -> Tensor:
            with attend_from_leading_tokens(block, hidden, resolve_signal(signal), self.value_bias):
                return block(hidden[:, :1])

        tokens = checkpoint(attend, state.hidden, use_reentrant=False) if self.checkpointing else attend(state.hidden)
        return vit.forward_head(vit.norm(tokens), pre_logits=True)

    def value_weight(self, index: int) -> Tensor:
        """The value third of every attention's fused projection, `[values, d]`."""
        return torch.cat([part.qkv.weight[2 * part.attn_dim :] for part in self.attentions[index]])

    def leave(self, state: State) -> Readout:
        """Tokens after the final norm `[B, N, d]`, and the model's own pooled features `[B, d]`."""
        vit = self.module
        tokens = vit.norm(state.hidden)
        z = vit.fc_norm(tokens)
        return Readout(z=z, compared=z, pooled=vit.forward_head(tokens, pre_logits=True))

    def stock(self, inputs: Tensor) -> Tensor:
        """timm's own forward pass up to the pooled features `[B, d]`."""
        return self.module.forward_head(self.module.forward_features(inputs), pre_logits=True)

    @property
    def licence(self) -> str | None:
        """As timm records it of published weights."""
        return get_licence(self.module)

    def example(self, batch: int) -> Tensor:
        """Random images `[batch, 3, H, W]` of the size the model was built for."""
        return torch.randn(batch, 3, *self.require_preprocessing().image_size)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Rows and columns of patches for these images."""
        embed = self.module.patch_embed
        rows, columns = embed.dynamic_feat_size(inputs.shape[-2:]) if self.module.dynamic_img_size else embed.grid_size
        return rows, columns

    def query_tokens(self) -> slice:
        """The class token, or every token of a model without one."""
        return slice(0, 1) if self.module.has_class_token else slice(self.prefix_tokens, None)
