"""A stock timm `Cait` as a backbone with two passes: signals enter at the values of the self-attention blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from timm.models.cait import Cait, TalkingHeadAttn
from torch import Tensor, nn

from toast_cli.plugin import Backbone, Level, Preprocessing, Readout, Signal, State, ToastError, Trace
from toast_timm.loading import get_licence
from toast_timm.value_rows import steer_value_rows


@contextmanager
def record_talking_heads(attention: TalkingHeadAttn, maps: list[Tensor]) -> Iterator[None]:
    """Append the softmax of every head, `[B, heads, N, N]`, as the model itself computes it, inside the block.

    The second projection of talking heads then mixes these maps linearly. The mixtures multiply the values, but they
    are no distributions over the tokens: weights can be negative, and rows do not sum to one.
    """

    def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        maps.append(inputs[0].permute(0, 3, 1, 2))

    handle = attention.proj_w.register_forward_pre_hook(record)
    try:
        yield
    finally:
        handle.remove()


class CaitBackbone(Backbone):
    """Any timm `Cait`. A level is a self-attention block, whose values are linear in its tokens despite talking heads.

    The class-attention stage is the end of the network, as a pooling is: its blocks compute only the class token, from
    patch tokens that they do not change, so there is no token for a signal and nothing to undo. `z` is therefore the
    patch tokens after the final norm, which are the tokens of every level; the class token has no place in the levels.

    Raises:
        ToastError: A block has no talking-heads attention.
    """

    has_attention = True
    adapter_targets = ("qkv",)
    takes_prompts = True
    module: Cait

    def __init__(self, module: Cait, preprocessing: Preprocessing) -> None:
        blocks: list[Any] = list(module.blocks)
        if not all(isinstance(getattr(block, "attn", None), TalkingHeadAttn) for block in blocks):
            raise ToastError(
                "The blocks of this Cait have no talking-heads attention.",
                "TOAST adds its signal to the values, and other attentions may make theirs in another way.",
                "Choose a CaiT with timm's own blocks.",
                code="backbone.cannot-steer",
            )
        self.module = module
        self.blocks = blocks
        self.width = self.head_width = module.embed_dim
        self.levels = [Level(self.width, self.width)] * len(blocks)
        self.level_modules = blocks
        self.preprocessing = preprocessing

    def enter(self, inputs: Tensor) -> State:
        """Return patch tokens `[B, N, d]` of images `[B, 3, H, W]`, with position embeddings."""
        return State(self.module.pos_drop(self.module.patch_embed(inputs) + self.module.pos_embed))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block. The signal `[B, N, d]` is added to the input of the value projection."""
        attention = self.blocks[index].attn
        maps: list[Tensor] = []
        with ExitStack() as attached:
            if signal is not None:
                attached.enter_context(steer_value_rows(attention.qkv, 2 * self.width, signal))
            if trace is not None and index in trace.attention_of:
                attached.enter_context(record_talking_heads(attention, maps))
            hidden = self.blocks[index](state.hidden)
        if trace is not None and maps:
            trace.attention[index] = maps[0]
        return State(hidden)

    def value_weight(self, index: int) -> Tensor:
        """Return the value third of the fused projection, `[d, d]`."""
        weight: Tensor = self.blocks[index].attn.qkv.weight
        return weight[2 * self.width :]

    def leave(self, state: State) -> Readout:
        """Return the patch tokens after the final norm `[B, N, d]`, and the pooled features of class attention."""
        cait = self.module
        tokens = state.hidden if cait.blocks_token_only is None else cait.forward_cls(state.hidden)
        tokens = cait.norm(tokens)
        z = tokens[:, cait.num_prefix_tokens :]
        return Readout(z=z, compared=z, pooled=cait.forward_head(tokens, pre_logits=True))

    def tap(self, state: State) -> Readout:
        """Return the patch tokens after the final norm, without the class-attention stage."""
        z = self.module.norm(state.hidden)
        return Readout(z=z, compared=z, pooled=z.mean(dim=1))

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
        """Return the rows and columns of patches, which the position embeddings fix."""
        rows, columns = self.module.patch_embed.grid_size
        return rows, columns
