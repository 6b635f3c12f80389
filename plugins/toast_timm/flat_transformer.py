"""What timm's transformers with blocks of one width and one number of tokens have in common as backbones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toast_cli.plugin import Backbone, Level, Preprocessing, Signal, State, Trace, ValueSignal
from toast_timm.attention_recorder import AttentionRecorder
from toast_timm.loading import get_licence
from toast_timm.value_projection import ProjectionCache, ValueProjection


@dataclass(frozen=True)
class BlockContext:
    """What blocks need beside the tokens: further `arguments` of the family, and cached projections."""

    arguments: Any = None
    cache: ProjectionCache | None = None


class FlatTransformer(Backbone):
    """A stock timm transformer. A level is a block, whose values are steered.

    Args:
        module: The model.
        blocks: Its blocks.
        projections: The value projections of each block. A block may have several attentions in parallel.
        preprocessing: The images that it was trained on.
    """

    has_attention = True
    adapter_targets: Sequence[str] = ("qkv",)
    module: Any
    value_bias: Literal["once", "twice"] = "once"

    def __init__(
        self,
        module: Any,
        blocks: Sequence[nn.Module],
        projections: Sequence[Sequence[ValueProjection]],
        preprocessing: Preprocessing,
    ) -> None:
        self.module, self.projections, self.preprocessing = module, projections, preprocessing
        self.width = module.embed_dim
        self.head_width = module.head_hidden_size
        self.levels = [Level(self.width, self.width)] * len(blocks)
        self.level_modules = list(blocks)

    @abstractmethod
    def run_block(self, index: int, hidden: Tensor, arguments: Any) -> Tensor:
        """Run one stock block on tokens `[B, N, d]`; `arguments` are those of the state, None if it was rebuilt."""

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block. The signal `[B, N, d]` is added to the input of the value projection."""
        recorder = None
        context = state.context or BlockContext()
        cache = context.cache if context.cache is not None and context.cache.index == index else None
        with ExitStack() as attached:
            for place, (projection, own) in enumerate(self._assign_signals(index, signal)):
                attached.enter_context(projection.prepare())
                if cache is not None:
                    attached.enter_context(projection.reuse(cache, place))
                if own is not None:
                    attached.enter_context(projection.steer(own, self.value_bias == "twice", cache is not None))
            if trace is not None and index in trace.attention_of and self.has_attention:
                recorder = attached.enter_context(AttentionRecorder())
            hidden = self.run_block(index, state.hidden, context.arguments)
        if trace is not None and recorder is not None:
            trace.attention[index] = torch.cat(recorder.maps, dim=1)
            if recorder.mismatches:
                trace.mismatch[index] = torch.stack(recorder.mismatches).amax()
        return State(hidden, None if context.arguments is None else BlockContext(context.arguments))

    def keep(self, state: State, index: int) -> State:
        """Cache the projections of the first steered block, which has the same tokens in both passes.

        With gradient checkpointing, nothing is cached.
        """
        if self.checkpointing:
            return state
        return State(state.hidden, replace(state.context or BlockContext(), cache=ProjectionCache(index)))

    def value_weight(self, index: int) -> Tensor:
        """Return `W_V` of all attentions of a block, `[values, d]`."""
        return torch.cat([projection.value_weight for projection in self.projections[index]])

    def stock(self, inputs: Any) -> Tensor:
        """Run timm's own forward pass up to the pooled features `[B, d]`."""
        return self.module.forward_head(self.module.forward_features(inputs), pre_logits=True)

    @property
    def licence(self) -> str | None:
        """The licence that timm records for published weights."""
        return get_licence(self.module)

    def example(self, batch: int) -> Tensor:
        """Return random images `[batch, 3, H, W]` of the preprocessed size."""
        return torch.randn(batch, 3, *self.require_preprocessing().image_size)

    def _assign_signals(self, index: int, signal: Signal | None) -> list[tuple[ValueProjection, Signal | None]]:
        """Return each projection of a block with its signal; their `ValueSignal`s are concatenated."""
        projections = self.projections[index]
        if not isinstance(signal, ValueSignal):
            return [(projection, signal) for projection in projections]
        parts = signal.tensor.split([projection.width for projection in projections], dim=-1)
        return [(projection, ValueSignal(part)) for projection, part in zip(projections, parts, strict=True)]
