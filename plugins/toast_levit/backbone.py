"""A stock timm `Levit` as a backbone with two passes: signals enter at the values of every attention."""

from __future__ import annotations

from typing import Any

from timm.models.levit import Levit
from torch import Tensor, nn

from toast_cli.plugin import Preprocessing, Readout, Signal, State
from toast_timm.any_model import make_wrap
from toast_timm.fused_values import FusedValues
from toast_timm.staged import StagedBackbone, make_level
from toast_timm.value_projection import map_signal


def to_tokens(hidden: Tensor) -> Tensor:
    """Return a map `[B, C, H, W]` as tokens `[B, N, C]`, in the memory layout that timm gives them."""
    return hidden.flatten(2).transpose(1, 2)


def _find_values(block: Any) -> FusedValues:
    """Return the values of a block's attention, or of the attention that halves the map: the last of each head."""
    attention = block.attn if hasattr(block, "attn") else block.attn_downsample
    projection = attention.qkv if hasattr(attention, "qkv") else attention.kv
    return FusedValues(projection, "linear", attention.num_heads * attention.val_dim, attention.num_heads)


def _find_input_size(module: Any) -> tuple[int, int]:
    """Return the image size (height, width) that the position biases were built for."""
    rows, columns = module.stages[0].blocks[0].attn.resolution
    return rows * module.stem.stride, columns * module.stem.stride


class LevitBackbone(StagedBackbone):
    """Any timm `Levit`, of linear layers or of convolutions. A level is a block, or the attention between two stages.

    Between two stages, attention with fewer queries than keys halves the map. It has values like any other, and a
    deconvolution of stride 2 undoes it, as for the stages of a ConvNeXt (section 4.4). If the map has an odd side, the
    deconvolution gives one row or column too many, which is cropped. A batch norm follows the projection of q, k and v,
    so `V = BN(W_V (X + X_td))`, which is linear in the signal in evaluation mode.

    `z` is the last block's map before the classifier, which norms only pooled features. Maps of attention with a
    position bias exist within a stage only, so feature energy is drawn.
    """

    adapter_targets = ("qkv.linear", "kv.linear")
    module: Levit

    def __init__(self, module: Levit, preprocessing: Preprocessing) -> None:
        self.blocks: list[Any] = []
        levels = []
        width = module.embed_dim[0]
        stages: list[Any] = list(module.stages)
        for stage, width_out in zip(stages, module.embed_dim, strict=True):
            if not isinstance(stage.downsample, nn.Identity):
                self.blocks.append(stage.downsample)
                levels.append(make_level(width, width_out, stage.downsample.attn_downsample.stride))
            self.blocks.extend(stage.blocks)
            levels.extend([make_level(width_out, width_out)] * len(stage.blocks))
            width = width_out
        super().__init__(module, preprocessing, levels, self.blocks, module.stem.stride)

    def enter(self, inputs: Tensor) -> State:
        """Return the map `[B, C, H, W]` of the convolutional stem."""
        return State(self.module.stem(inputs))

    def run_level(self, index: int, hidden: Tensor, signal: Signal | None) -> Tensor:
        """Run one stock block. The signal is added to the input of the value projection."""
        block = self.blocks[index]
        if signal is None:
            return self._run(block, hidden)
        with _find_values(block).steer(signal if self.module.use_conv else map_signal(signal, to_tokens)):
            return self._run(block, hidden)

    def value_weight(self, index: int) -> Tensor:
        """Return the value rows of every head, `[values, C]`."""
        return _find_values(self.blocks[index]).value_weight

    def leave(self, state: State) -> Readout:
        """Return the last map `[B, C, H, W]` and its mean `[B, C]`."""
        features = state.hidden if self.module.use_conv else to_tokens(state.hidden)
        return Readout(
            z=state.hidden, compared=state.hidden, pooled=self.module.forward_head(features, pre_logits=True)
        )

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the last map, which the position biases fix."""
        rows, columns = self.blocks[-1].attn.resolution
        return rows, columns

    def _run(self, block: Any, hidden: Tensor) -> Tensor:
        if self.module.use_conv:
            return block(hidden)
        tokens = block(to_tokens(hidden))
        rows, columns = hidden.shape[-2:]
        if not hasattr(block, "attn"):
            stride = block.attn_downsample.stride
            rows, columns = -(-rows // stride), -(-columns // stride)
        return tokens.transpose(1, 2).unflatten(-1, (rows, columns))


wrap_levit = make_wrap(LevitBackbone, Levit, _find_input_size)
