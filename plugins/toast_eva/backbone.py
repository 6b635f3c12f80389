"""A stock timm `Eva` as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.layers import AttentionRope
from timm.models.eva import Eva, EvaAttention
from torch import Tensor
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
    resolve_signal,
)
from toast_eva.attention import (
    AttentionRecorder,
    attend_from_class_token,
    call_projection,
    get_projections,
    get_value_weight,
    is_stock_block,
    reuse_projections,
    steer_values,
)
from toast_timm.loading import get_licence


@dataclass(frozen=True)
class EvaContext:
    """What the blocks need beside the tokens.

    `rope` holds sine and cosine of the patches' rotary positions, `[N, 2c]` or, mixed, `[levels, heads, N, 2c]`; None
    without them. `projected` are the outputs of the projections of block `kept` for tokens that both passes share.
    """

    rope: Tensor | None
    kept: int | None = None
    projected: list[Tensor] = field(default_factory=list)


def extend_rope(rope: Tensor, tokens: int) -> Tensor:
    """Extend rotary positions to so many tokens. Those beyond the patches (prompts) are not rotated."""
    missing = tokens - rope.shape[-2]
    if missing == 0:
        return rope
    sine, cosine = rope.chunk(2, dim=-1)
    return torch.cat([F.pad(sine, (0, 0, 0, missing)), F.pad(cosine, (0, 0, 0, missing), value=1.0)], dim=-1)


class EvaBackbone(Backbone):
    """Any timm `Eva`. A level is a block.

    `z` is every token after the model's final norm, including class token and registers. Models that pool before the
    norm apply the norm to the tokens for `z`, and keep their own order for the pooled features.

    Raises:
        ToastError: The blocks have attention of another kind.
    """

    has_attention = True
    takes_prompts = True
    module: Eva

    def __init__(self, module: Eva, preprocessing: Preprocessing) -> None:
        self.module = module
        self.attentions: list[Any] = [getattr(block, "attn", None) for block in module.blocks]
        other = {type(each).__name__ for each in self.attentions if type(each) not in (EvaAttention, AttentionRope)}
        if other:
            raise ToastError(
                f"The blocks of this Eva have attention of an unknown kind: {', '.join(sorted(other))}.",
                "TOAST adds its signal to the values, which are found in EvaAttention and AttentionRope.",
                "Choose an Eva model with attention of its own.",
                code="backbone.cannot-steer",
            )
        self.width = self.head_width = module.embed_dim
        self.levels = [Level(self.width, self.width)] * len(module.blocks)
        self.level_modules = list(module.blocks)
        self.preprocessing = preprocessing
        self.prefix_tokens = module.num_prefix_tokens
        self.adapter_targets = (
            ("qkv",) if len(get_projections(self.attentions[0])) == 1 else ("q_proj", "k_proj", "v_proj")
        )
        own_pooling = type(module).pool is Eva.pool and type(module).forward_head is Eva.forward_head
        first = module.cls_token is not None and module.global_pool == "token" and module.attn_pool is None
        self._pools_class_token = own_pooling and first

    def enter(self, inputs: Tensor) -> State:
        """Return tokens `[B, N, d]` of images `[B, 3, H, W]`, and their rotary positions."""
        eva = self.module
        tokens, rope = eva._pos_embed(eva.patch_embed(inputs))
        return State(eva.norm_pre(tokens), EvaContext(rope))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block. The signal `[B, N, d]` is added to the input of the value projection."""
        attention, context = self.attentions[index], self._get_context(state)
        recorder = AttentionRecorder() if trace is not None and index in trace.attention_of else None
        kept = context.kept == index
        with ExitStack() as attached:
            attached.enter_context(call_projection(attention, steered=kept or signal is not None))
            if kept:
                attached.enter_context(reuse_projections(attention, context.projected))
            if signal is not None:
                attached.enter_context(steer_values(attention, signal, kept))
            if recorder is not None:
                attached.enter_context(recorder)
            hidden = self.module.blocks[index](state.hidden, rope=self._get_rope(index, state.hidden, context))
        if trace is not None and recorder is not None:
            trace.attention[index] = recorder.maps[0]
            if recorder.mismatches:
                trace.mismatch[index] = recorder.mismatches[0]
        return State(hidden, replace(context, kept=None, projected=[]))

    def _get_rope(self, index: int, tokens: Tensor, context: EvaContext) -> Tensor | None:
        """Return the rotary positions of a block for all tokens after the prefix."""
        if context.rope is None:
            return None
        rope = context.rope[index] if self.module.rope_mixed else context.rope
        return extend_rope(rope, tokens.shape[1] - self.prefix_tokens)

    def _get_context(self, state: State) -> EvaContext:
        """Return the context of a state. One from the cache of first passes has none: images had the usual size.

        Raises:
            ToastError: They had another size.
        """
        if state.context is not None:
            context: EvaContext = state.context
            return context
        eva, size = self.module, self.require_preprocessing().image_size
        rows, columns = eva.patch_embed.dynamic_feat_size(size)
        if rows * columns + self.prefix_tokens != state.hidden.shape[1]:
            raise ToastError(
                f"The rotary positions of {state.hidden.shape[1]} tokens are unknown.",
                f"Images of {size[0]} × {size[1]} pixels have {rows * columns + self.prefix_tokens}.",
                "Leave training.cache out, or give images of this size.",
                code="cache.wrong-image-size",
            )
        if eva.rope is None:
            return EvaContext(None)
        fixed = not eva.dynamic_img_size and hasattr(eva.rope, "feat_shape")
        return EvaContext(eva.rope.get_embed() if fixed else eva.rope.get_embed(shape=(rows, columns)))

    def keep(self, state: State, index: int) -> State:
        """Cache q, k, v of the first steered block, which projects the same tokens in both passes.

        With gradient checkpointing, nothing is cached.
        """
        if self.checkpointing:
            return state
        return State(state.hidden, replace(self._get_context(state), kept=index, projected=[]))

    def conclude(self, state: State, signal: Signal | LazySignal | None = None) -> Tensor:
        """Return the pooled features. If they are the class token, the last block attends from that token only."""
        eva, block = self.module, self.module.blocks[-1]
        if not (self._pools_class_token and is_stock_block(block)):
            return super().conclude(state, signal)
        rope = self._get_rope(len(self.levels) - 1, state.hidden, self._get_context(state))

        def attend(hidden: Tensor) -> Tensor:
            with attend_from_class_token(block, hidden, resolve_signal(signal)):
                class_token: Tensor = block(hidden[:, :1], rope=rope)
                return class_token

        tokens = checkpoint(attend, state.hidden, use_reentrant=False) if self.checkpointing else attend(state.hidden)
        pooled: Tensor = eva.forward_head(eva.norm(tokens), pre_logits=True)
        return pooled

    def value_weight(self, index: int) -> Tensor:
        """Return the value rows of the block's projection, `[values, d]`."""
        return get_value_weight(self.attentions[index])

    def leave(self, state: State) -> Readout:
        """Return the tokens after the final norm `[B, N, d]` and the model's own pooled features `[B, d]`."""
        eva = self.module
        tokens = eva.norm(state.hidden)
        z = eva.fc_norm(tokens)
        return Readout(z=z, compared=z, pooled=eva.forward_head(tokens, pre_logits=True))

    def stock(self, inputs: Tensor) -> Tensor:
        """Run timm's own forward pass up to the pooled features `[B, d]`."""
        features: Tensor = self.module.forward_head(self.module.forward_features(inputs), pre_logits=True)
        return features

    @property
    def licence(self) -> str | None:
        """The licence that timm records for published weights."""
        return get_licence(self.module)

    def example(self, batch: int) -> Tensor:
        """Return random images `[batch, 3, H, W]` of the model's input size."""
        return torch.randn(batch, 3, *self.require_preprocessing().image_size)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches for these images."""
        rows, columns = self.module.patch_embed.dynamic_feat_size(inputs.shape[-2:])
        return rows, columns

    def query_tokens(self) -> slice:
        """Return the class token, or all patch tokens of a model without one."""
        return slice(0, 1) if self.module.cls_token is not None else slice(self.prefix_tokens, None)
