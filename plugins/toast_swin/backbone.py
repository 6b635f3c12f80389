"""Timm's Swin Transformers as backbones with two passes: signals enter at the values of windows."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from torch import Tensor, nn

from toast_cli.plugin import Backbone, Level, Preprocessing, Readout, Signal, State, ToastError, Trace, ValueSignal
from toast_swin.windows import (
    AttentionCache,
    cache_attention,
    get_value_weight,
    reuse_attention,
    steer_window_values,
)
from toast_timm.loading import get_licence

SWIN_CLASSES = (SwinTransformer, SwinTransformerV2, SwinTransformerV2Cr)

ZERO_NORMS = (
    "The norms after attention are all zero, as in a new SwinV2: signals at the values have no effect before the "
    "backbone is trained. Use pretrained weights."
)


def to_channels_last(map: Tensor) -> Tensor:
    """Return a map `[B, C, H, W]` as `[B, H, W, C]`, the layout of timm's blocks. Nothing is copied if it came so."""
    return map.permute(0, 2, 3, 1).contiguous()


def to_channels_first(map: Tensor) -> Tensor:
    """Return a map `[B, H, W, C]` as `[B, C, H, W]`, without a copy."""
    return map.permute(0, 3, 1, 2)


class SwinBackbone(Backbone):
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

    channel_dim = 1
    module: Any

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        name = type(module).__name__
        if not isinstance(module, SWIN_CLASSES):
            raise ToastError(
                f"{name} is not a timm Swin Transformer.",
                what_to_do="Choose a Swin, SwinV2 or SwinV2-CR model, or the plugin of its family.",
                code="backbone.wrong-family",
            )
        self.module, self.preprocessing = module, preprocessing
        self.width, self.head_width = module.num_features, module.head_hidden_size
        self.blocks: list[tuple[nn.Module | None, Any]] = []
        """The merging before a block, or None, and the block."""
        self.levels: list[Level] = []
        for stage in module.stages if isinstance(module, SwinTransformerV2Cr) else module.layers:
            merging = None if isinstance(stage.downsample, nn.Identity) else stage.downsample
            for block in stage.blocks:
                self._add_level(merging, block)
                merging = None
        self.level_modules = [part for merging, block in self.blocks for part in (merging, block) if part is not None]
        # SwinV2 uses the weight of its projection without calling the layer, so factors on it have no effect.
        called = not isinstance(module, SwinTransformerV2)
        self.adapter_targets = ("qkv",) if called else ("attn.proj", "mlp.fc1", "mlp.fc2")
        norms = [] if isinstance(module, SwinTransformer) else [block.norm1.weight for _, block in self.blocks]
        if norms and not any(weight.is_meta or bool(weight.any()) for weight in norms):
            self.notes = [ZERO_NORMS]

    def _add_level(self, merging: Any, block: Any) -> None:
        projection = getattr(block.attn, "qkv", None)
        if projection is None:
            raise ToastError(
                f"The blocks of this {type(self.module).__name__} have no q, k, v projection of their own.",
                "TOAST adds its signal to the values.",
                "Choose a Swin with the attention of timm.",
                code="backbone.cannot-steer",
            )
        width = projection.in_features
        self.blocks.append((merging, block))
        if merging is None:
            self.levels.append(Level(width, width, "deconvolution", 1))
        else:
            self.levels.append(Level(self.levels[-1].width_out, width, "deconvolution", 2))

    def enter(self, inputs: Tensor) -> State:
        """Return the patches `[B, C, H, W]` of images `[B, 3, H, W]`."""
        patches = self.module.patch_embed(inputs)
        return State(patches if isinstance(self.module, SwinTransformerV2Cr) else to_channels_first(patches))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block, after the merging before it. The signal `[B, C, H, W]` enters as the class says."""
        merging, block = self.blocks[index]
        hidden = to_channels_last(state.hidden)
        cache = state.context if isinstance(state.context, AttentionCache) and state.context.index == index else None
        attached: Any = nullcontext() if cache is None else cache_attention(block, cache)
        if signal is not None:
            entering = self._crop(signal, hidden)
            if merging is not None:
                assert isinstance(entering, Tensor)  # a level with a merging has no value_weight
                hidden = hidden + entering
            elif cache is not None and cache.map is not None:
                attached = reuse_attention(block, entering, cache)
            else:
                attached = steer_window_values(block, entering)
        with attached:
            hidden = block(hidden if merging is None else merging(hidden))
        return State(to_channels_first(hidden))

    def _crop(self, signal: Signal, hidden: Tensor) -> Signal:
        """Return a signal `[B, C, H', W']` as `[B, H, W, C]`, with the size of a map `[B, H, W, C]`."""
        rows, columns = hidden.shape[1:3]
        if isinstance(signal, ValueSignal):
            return ValueSignal(to_channels_last(signal.tensor[..., :rows, :columns]))
        return to_channels_last(signal[..., :rows, :columns])

    def keep(self, state: State, index: int) -> State:
        """Cache the attention of the first steered block, which is the same in both passes except for the values.

        With gradient checkpointing, nothing is cached.
        """
        if self.checkpointing or self.blocks[index][0] is not None:
            return state
        return State(state.hidden, AttentionCache(index))

    def value_weight(self, index: int) -> Tensor | None:
        """Return the value third of a block's fused projection, `[values, C]`; None for a level with a merging."""
        merging, block = self.blocks[index]
        if merging is not None:
            return None
        return get_value_weight(block.attn)

    def leave(self, state: State) -> Readout:
        """Return the last map after the final norm `[B, d, H, W]` and the pooled features `[B, d]`."""
        if isinstance(self.module, SwinTransformerV2Cr):
            z = pooled = state.hidden
        else:
            pooled = self.module.norm(to_channels_last(state.hidden))
            z = to_channels_first(pooled)
        return Readout(z=z, compared=z, pooled=self.module.forward_head(pooled, pre_logits=True))

    def tap(self, state: State) -> Readout:
        """Return a level's map: the final norm only fits the channels of the last stage."""
        return Readout(z=state.hidden, compared=state.hidden, pooled=state.hidden)

    def stock(self, inputs: Tensor) -> Tensor:
        """Run timm's own forward pass up to the pooled features `[B, d]`."""
        pooled: Tensor = self.module.forward_head(self.module.forward_features(inputs), pre_logits=True)
        return pooled

    @property
    def licence(self) -> str | None:
        """The licence that timm records for published weights."""
        return get_licence(self.module)

    def example(self, batch: int) -> Tensor:
        """Return random images `[batch, 3, H, W]` of the model's input size."""
        return torch.randn(batch, 3, *self.require_preprocessing().image_size)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the last map."""
        patch = self.module.patch_embed.patch_size
        rows, columns = (side // cells for side, cells in zip(inputs.shape[-2:], patch, strict=True))
        for merging, _ in self.blocks:
            if merging is not None:
                rows, columns = -(-rows // 2), -(-columns // 2)
        return rows, columns
