"""What timm's transformers with blocks of one width and one number of tokens have in common as backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toast_cli.plugin import (
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
)
from toast_timm.backbone import TimmBackbone
from toast_timm.leading_tokens import attend_from_first_token, is_stock_block
from toast_timm.map_recorder import MapRecorder
from toast_timm.value_projection import (
    STOCK_ATTENTIONS,
    ProjectionCache,
    ValueProjection,
    find_value_projections,
    is_differential,
)


@dataclass(frozen=True)
class BlockContext:
    """What blocks need beside the tokens: what all of them share (positions, masks), and cached projections."""

    shared: Any = None
    cache: ProjectionCache | None = None


class FlatTransformer(TimmBackbone):
    """A stock timm transformer. A level is a block, whose values are steered.

    `z` is every token after the model's final norm, class token and registers included. Models that pool before the
    norm (average pooling) apply the norm to the tokens for `z`, and keep their own order for the pooled features.

    A subclass defines `enter`, and `attention_classes` if its blocks have attention of its own. If they need more than
    the tokens, `enter` puts it into a `BlockContext`, `get_arguments` returns their keyword arguments, and `rebuild`
    makes it anew. If `pools_first_token`, pooled features are those of the first token after the norm.

    Args:
        module: The model.
        preprocessing: The images that it was trained on.
        encoder: The part of the model that has the blocks; the model itself by default.

    Raises:
        ToastError: A block has no value projection that is known.
    """

    has_attention = True
    attention_classes: tuple[type[nn.Module], ...] = STOCK_ATTENTIONS
    module: Any
    value_bias: Literal["once", "twice"] = "once"
    pools_first_token = False

    def __init__(self, module: Any, preprocessing: Preprocessing, encoder: Any = None) -> None:
        self.module, self.preprocessing = module, preprocessing
        self.encoder = module if encoder is None else encoder
        self.blocks: list[Any] = list(self.encoder.blocks)
        self.projections = [self.find_projections(block) for block in self.blocks]
        unknown = [block for block, found in zip(self.blocks, self.projections, strict=True) if not found]
        if unknown:
            kinds = sorted({type(getattr(block, "attn", block)).__name__ for block in unknown})
            raise ToastError(
                f"Blocks of this {type(module).__name__} have attention of an unknown kind: {', '.join(kinds)}.",
                "TOAST adds its signal to the input of the values, which are found in timm's own attention.",
                "Choose a model with ordinary attention blocks.",
                code="backbone.cannot-steer",
            )
        every = [projection for found in self.projections for projection in found]
        self.has_attention = self.has_attention and not any(is_differential(projection) for projection in every)
        self.adapter_targets: Sequence[str] = list(dict.fromkeys(name for each in every for name in each.names))
        self.width, self.head_width = self.encoder.embed_dim, module.head_hidden_size
        self.levels = [Level(self.width, self.width)] * len(self.blocks)
        self.level_modules = self.blocks

    def find_projections(self, block: nn.Module) -> list[ValueProjection]:
        """Return the value projections of a block: several of attentions in parallel, none if they are not known."""
        return find_value_projections(block, self.attention_classes)

    def get_arguments(self, index: int, tokens: Tensor, shared: Any) -> Mapping[str, Any]:
        """Return the keyword arguments of a block."""
        return {}

    def rebuild(self, tokens: Tensor) -> Any:
        """Return what the blocks share, for tokens without a context: from a cache, of images of the usual size."""
        return None

    def get_context(self, state: State) -> BlockContext:
        """Return the context of a state."""
        context: BlockContext | None = state.context
        return BlockContext(self.rebuild(state.hidden)) if context is None else context

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block. The signal `[B, N, d]` is added to the input of the value projection."""
        recorder = None
        context = self.get_context(state)
        cache = context.cache if context.cache is not None and context.cache.index == index else None
        arguments = self.get_arguments(index, state.hidden, context.shared)
        with ExitStack() as attached:
            for projection, own in self._assign_signals(index, signal):
                attached.enter_context(projection.prepare())
                if cache is not None:
                    attached.enter_context(projection.reuse(cache))
                if own is not None:
                    attached.enter_context(projection.steer(own, self.value_bias == "twice", cache is not None))
            if trace is not None and index in trace.attention_of and self.has_attention:
                recorder = attached.enter_context(MapRecorder())
            hidden = self.blocks[index](state.hidden, **arguments)
        if trace is not None and recorder is not None:
            trace.attention[index] = torch.cat(recorder.maps, dim=1)
            if recorder.mismatches:
                trace.mismatch[index] = torch.stack(recorder.mismatches).amax()
        return State(hidden, None if context.shared is None else BlockContext(context.shared))

    def restore(self, hidden: Tensor) -> State:
        """Return the state of cached tokens `[B, N, d]`."""
        return State(hidden, self.get_context(State(hidden)))

    def keep(self, state: State, index: int) -> State:
        """Cache the projections of the first steered block, which has the same tokens in both passes.

        With gradient checkpointing, nothing is cached.
        """
        if self.checkpointing:
            return state
        return State(state.hidden, replace(self.get_context(state), cache=ProjectionCache(index)))

    def conclude(self, state: State, signal: Signal | LazySignal | None = None) -> Tensor:
        """Return the pooled features. If they are the first token, the last block attends from that token only."""
        block, projections, last = self.blocks[-1], self.projections[-1], len(self.blocks) - 1
        if not (self.pools_first_token and len(projections) == 1 and is_stock_block(block, projections[0])):
            return super().conclude(state, signal)
        arguments = self.get_arguments(last, state.hidden, self.get_context(state).shared)

        def attend(hidden: Tensor) -> Tensor:
            bias_twice = self.value_bias == "twice"
            with attend_from_first_token(block, projections[0], hidden, resolve_signal(signal), bias_twice):
                first: Tensor = block(hidden[:, :1], **arguments)
                return first

        tokens = checkpoint(attend, state.hidden, use_reentrant=False) if self.checkpointing else attend(state.hidden)
        return self.module.forward_head(self.module.norm(tokens), pre_logits=True)

    def value_weight(self, index: int) -> Tensor:
        """Return `W_V` of all attentions of a block, `[values, d]`."""
        return torch.cat([projection.value_weight for projection in self.projections[index]])

    def leave(self, state: State) -> Readout:
        """Return the tokens after the final norm `[B, N, d]` and the model's own pooled features `[B, d]`."""
        tokens = self.module.norm(state.hidden)
        z = self.module.fc_norm(tokens)
        return Readout(z=z, compared=z, pooled=self.module.forward_head(tokens, pre_logits=True))

    def grid(self, inputs: Any) -> tuple[int, int]:
        """Return the rows and columns of patches for these images."""
        rows, columns = self.encoder.patch_embed.dynamic_feat_size(tuple(inputs.shape[-2:]))
        return rows, columns

    def _assign_signals(self, index: int, signal: Signal | None) -> list[tuple[ValueProjection, Signal | None]]:
        """Return each projection of a block with its signal; their `ValueSignal`s are concatenated."""
        projections = self.projections[index]
        if not isinstance(signal, ValueSignal):
            return [(projection, signal) for projection in projections]
        parts = signal.tensor.split([projection.width for projection in projections], dim=-1)
        return [(projection, ValueSignal(part)) for projection, part in zip(projections, parts, strict=True)]
