"""A stock timm `PyramidVisionTransformerV2` as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.models.pvt_v2 import Attention, PyramidVisionTransformerV2
from torch import Tensor, nn

from toast_cli.plugin import Preprocessing, Readout, Signal, State, ValueSignal
from toast_timm.any_model import make_wrap
from toast_timm.map_layout import flatten_map
from toast_timm.staged_transformer import StagedTransformer, make_level, require_same_stride
from toast_timm.value_projection import ValueProjection, map_signal


def _find_values(attention: Attention) -> ValueProjection:
    """Return the value half of the projection to keys and values."""
    return ValueProjection(attention, "kv", attention.kv.out_features // 2)


def reduce_tokens(attention: Attention, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the tokens of the reduced map, from which the model computes keys and values."""
    reduced = tokens.permute(0, 2, 1).reshape(tokens.shape[0], -1, *size)
    if attention.pool is not None:
        reduced = attention.pool(reduced)
    reduced = attention.norm(attention.sr(reduced).flatten(2).permute(0, 2, 1))
    return reduced if attention.act is None else attention.act(reduced)


@contextmanager
def steer_reduced_values(attention: Attention, signal: Tensor, size: tuple[int, int]) -> Iterator[None]:
    """Inside the block, `V = W_V reduce(X + signal) + b_V`, and Q and K are unchanged. The signal is `[B, N, C]`."""
    steered: list[Tensor] = []

    def reduce_steered(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        steered.append(reduce_tokens(attention, inputs[0] + signal.to(inputs[0].dtype), size))

    handle = attention.register_forward_pre_hook(reduce_steered)
    try:
        with _find_values(attention).replace_input(steered.pop):
            yield
    finally:
        handle.remove()


class PvtBackbone(StagedTransformer):
    """Any timm `PyramidVisionTransformerV2`. A level is a block.

    `V = W_V reduce(X + X_td,l) + b_V`, `K = W_K reduce(X) + b_K` (section 3.1, step iv): the signal goes through the
    same spatial reduction as X does on its way to the values. The reduction has a norm, so signals enter at the values
    linearly, and have a `value_weight`, only in the blocks without one.

    The block that begins a stage comes after a down-sampling of its own. As in the paper's ConvNeXt (section 4.4), its
    signal is added to the input of the down-sampling, and a deconvolution undoes the level. The norm that ends a stage
    belongs to its last block.

    `z` is the map after the last stage's norm, as for ViT.

    If a stride does not divide its map, the convolution of the model makes one cell more, and what the deconvolution
    gives beyond the map is cropped. Images may have any size.
    """

    any_image_size = True
    adapter_targets = ("q", "kv")
    module: PyramidVisionTransformerV2

    def __init__(self, module: PyramidVisionTransformerV2, preprocessing: Preprocessing) -> None:
        stages: Any = module.stages
        self.downsamples: list[Any] = []
        self.norms: list[Any] = []
        levels = []
        width = module.patch_embed.proj.out_channels
        for stage in stages:
            first, end = stage.downsample, len(stage.blocks) - 1
            for place, block in enumerate(stage.blocks):
                self.downsamples.append(first if place == 0 else None)
                self.norms.append(stage.norm if place == end else None)
                strides = first.proj.stride if place == 0 and first is not None else (1, 1)
                levels.append(make_level(width, block.attn.dim, require_same_stride(module, strides)))
                width = block.attn.dim
        blocks = [block for stage in stages for block in stage.blocks]
        stride = require_same_stride(module, module.patch_embed.proj.stride)
        super().__init__(module, preprocessing, levels, blocks, stride)

    def enter(self, inputs: Tensor) -> State:
        """Return the embedded patches of images `[B, 3, H, W]` as a map."""
        return State(self.module.patch_embed(inputs).permute(0, 3, 1, 2))

    def run_level(self, index: int, hidden: Tensor, signal: Signal | None) -> Tensor:
        """Run one stock block. The signal is added to the input of the values, or to that of the down-sampling."""
        block: Any = self.level_modules[index]
        downsample, norm = self.downsamples[index], self.norms[index]
        if downsample is not None:
            if signal is not None:
                assert not isinstance(signal, ValueSignal)  # this level has no value_weight
                hidden, signal = hidden + signal, None
            hidden = downsample(hidden.contiguous()).permute(0, 3, 1, 2)
        rows, columns = hidden.shape[-2:]
        tokens = flatten_map(hidden)
        if signal is None:
            tokens = block(tokens, (rows, columns))
        else:
            sent = map_signal(signal, flatten_map)
            if isinstance(sent, ValueSignal) or block.attn.sr is None:
                steered = _find_values(block.attn).steer(sent)
            else:
                steered = steer_reduced_values(block.attn, sent, (rows, columns))
            with steered:
                tokens = block(tokens, (rows, columns))
        if norm is not None:
            tokens = norm(tokens)
        return tokens.transpose(1, 2).unflatten(2, (rows, columns))

    def value_weight(self, index: int) -> Tensor | None:
        """Return the value half of the projection, `[values, C]`, or None for a reduced map or a down-sampling."""
        block: Any = self.level_modules[index]
        if self.downsamples[index] is not None or block.attn.sr is not None:
            return None
        return _find_values(block.attn).value_weight

    def steers_values(self, index: int) -> bool:
        """Return whether the level has no down-sampling: a reduced map is steered at the values, too."""
        return self.downsamples[index] is None

    def leave(self, state: State) -> Readout:
        """Return the last map `[B, d, H, W]`, which is normalized, and the model's own pooled features `[B, d]`."""
        z = state.hidden
        return Readout(z=z, compared=z, pooled=self.module.forward_head(z.contiguous(), pre_logits=True))


wrap_pvt = make_wrap(PvtBackbone, PyramidVisionTransformerV2)
