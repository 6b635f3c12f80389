"""Timm's Swin Transformers as backbones with two passes: signals enter at the values of windows."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from torch import Tensor, nn

from toast_cli.plugin import Level, Preprocessing, Readout, Signal, State, ToastError, Trace
from toast_swin.windows import AttentionCache, cache_attention, reuse_attention, steer_window_values
from toast_timm.map_layout import to_channels_first, to_channels_last
from toast_timm.staged_transformer import StagedTransformer, fit_signal, make_level
from toast_timm.value_projection import find_value_projection, map_signal

SWIN_CLASSES = (SwinTransformer, SwinTransformerV2, SwinTransformerV2Cr)

ZERO_NORMS = (
    "The norms after attention are all zero, as in a new SwinV2: signals at the values have no effect before the "
    "backbone is trained. Use pretrained weights."
)


class SwinBackbone(StagedTransformer):
    """Any timm `SwinTransformer`, `SwinTransformerV2` or `SwinTransformerV2Cr`. A level is a block.

    A block is steered as a transformer (section 3.1, step iv): `V = W_V (X + X_td) + b_V` inside its windows, with Q
    and K unchanged. `X_td` is shifted, padded and cut into windows exactly as the tokens. X is what the attention
    receives: the tokens after the block's first norm (Swin), or the residual stream itself (SwinV2 and SwinV2-CR, which
    norm the output of the attention).

    The patch merging before a stage belongs to the stage's first block, and `A_l` undoes it with a deconvolution of
    stride 2. The signal of such a level has the shape of the level's input, which is finer than the block's own tokens.
    It is added to the input of the merging, as ConvNeXt's is to that of its down-sampling (section 4.4). The merging
    and the block then run unchanged: this level's signal reaches Q, K and V through the residual stream. All other
    levels keep their size. Their `A_l` and `B_l` are 1 by 1 deconvolutions: linear layers over the channels of a map.

    Merging pads an odd side by one, so that feedback is one row or column larger than the map before. The signal is
    cropped there. `z` is the last map after the model's final norm, as for other transformers; SwinV2-CR has that norm
    inside its last block. The patch embedding is shared by both passes.

    There are no attention maps: attention exists only between the tokens of a window, windows differ between blocks,
    and the tokens of early blocks are finer than those of the last. The energy of features is shown instead.

    Raises:
        ToastError: The model is not a Swin Transformer, or its blocks have no projection to q, k and v.
    """

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        name = type(module).__name__
        if not isinstance(module, SWIN_CLASSES):
            raise ToastError(
                f"{name} is not a timm Swin Transformer.",
                what_to_do="Choose a Swin, SwinV2 or SwinV2-CR model, or the plugin of its family.",
                code="backbone.wrong-family",
            )
        self.blocks: list[tuple[nn.Module | None, Any]] = []
        """The merging before a block, or None, and the block."""
        levels: list[Level] = []
        for stage in module.stages if isinstance(module, SwinTransformerV2Cr) else module.layers:
            merging = None if isinstance(stage.downsample, nn.Identity) else stage.downsample
            for block in stage.blocks:
                self.blocks.append((merging, block))
                levels.append(self._make_level(module, levels, merging, block))
                merging = None
        parts = [part for pair in self.blocks for part in pair if part is not None]
        self.projections = [find_value_projection(block.attn) for _, block in self.blocks]
        super().__init__(module, preprocessing, levels, parts, module.patch_embed.patch_size[0])
        # Outside of a level, SwinV2 does not call its projection, so factors on it would have no effect.
        called = not isinstance(module, SwinTransformerV2)
        self.adapter_targets = ("qkv",) if called else ("attn.proj", "mlp.fc1", "mlp.fc2")
        norms = [] if isinstance(module, SwinTransformer) else [block.norm1.weight for _, block in self.blocks]
        if norms and not any(weight.is_meta or bool(weight.any()) for weight in norms):
            self.notes = [ZERO_NORMS]

    @staticmethod
    def _make_level(module: nn.Module, before: list[Level], merging: Any, block: Any) -> Level:
        projection = getattr(block.attn, "qkv", None)
        if projection is None:
            raise ToastError(
                f"The blocks of this {type(module).__name__} have no q, k, v projection of their own.",
                "TOAST adds its signal to the values.",
                "Choose a Swin with the attention of timm.",
                code="backbone.cannot-steer",
            )
        width = projection.in_features
        return make_level(width, width) if merging is None else make_level(before[-1].width_out, width, 2)

    def enter(self, inputs: Tensor) -> State:
        """Return the patches `[B, C, H, W]` of images `[B, 3, H, W]`."""
        patches = self.module.patch_embed(inputs)
        return State(patches if isinstance(self.module, SwinTransformerV2Cr) else to_channels_first(patches))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block, after the merging before it. The signal `[B, C, H, W]` enters as the class says."""
        cache = state.context if isinstance(state.context, AttentionCache) and state.context.index == index else None
        fitted = None if signal is None else fit_signal(signal, state.hidden)
        return State(self.run_level(index, state.hidden, fitted, cache))

    def run_level(
        self, index: int, hidden: Tensor, signal: Signal | None, cache: AttentionCache | None = None
    ) -> Tensor:
        """Run one level on a map, and store or use its cached attention."""
        (merging, block), projection = self.blocks[index], self.projections[index]
        tokens = to_channels_last(hidden)
        attached: Any = nullcontext() if cache is None else cache_attention(block, cache)
        if signal is not None:
            entering = map_signal(signal, to_channels_last)
            if merging is not None:
                assert isinstance(entering, Tensor)  # a level with a merging has no value_weight
                tokens = tokens + entering
            elif cache is not None and cache.map is not None:
                attached = reuse_attention(block, projection, entering, cache)
            else:
                attached = steer_window_values(block, projection, entering)
        with projection.prepare(), attached:
            tokens = block(tokens if merging is None else merging(tokens))
        return to_channels_first(tokens)

    def keep(self, state: State, index: int) -> State:
        """Cache the attention of the first steered block, which is the same in both passes except for the values.

        With gradient checkpointing, nothing is cached.
        """
        if self.checkpointing or self.blocks[index][0] is not None:
            return state
        return State(state.hidden, AttentionCache(index))

    def value_weight(self, index: int) -> Tensor | None:
        """Return the value third of a block's fused projection, `[values, C]`; None for a level with a merging."""
        merging, _ = self.blocks[index]
        return None if merging is not None else self.projections[index].value_weight

    def leave(self, state: State) -> Readout:
        """Return the last map after the final norm `[B, d, H, W]` and the pooled features `[B, d]`."""
        if isinstance(self.module, SwinTransformerV2Cr):
            z = pooled = state.hidden
        else:
            pooled = self.module.norm(to_channels_last(state.hidden))
            z = to_channels_first(pooled)
        return Readout(z=z, compared=z, pooled=self.module.forward_head(pooled, pre_logits=True))

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the last map."""
        patch = self.module.patch_embed.patch_size
        rows, columns = (side // cells for side, cells in zip(inputs.shape[-2:], patch, strict=True))
        for merging, _ in self.blocks:
            if merging is not None:
                rows, columns = -(-rows // 2), -(-columns // 2)
        return rows, columns
