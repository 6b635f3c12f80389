"""A stock timm `Levit` as a backbone with two passes: signals enter at the values of every attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.levit import Levit
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.plugin import Backbone, Level, Preprocessing, Readout, Signal, State, Trace, ValueSignal
from toast_timm.loading import get_licence


@dataclass(frozen=True)
class Values:
    """The values of one attention: the last `width` output channels of each head in a projection's linear layer."""

    projection: Any
    heads: int
    width: int

    @property
    def layer(self) -> Any:
        """The linear layer or 1 by 1 convolution, which an adapter may have replaced."""
        return self.projection.linear

    @property
    def weight(self) -> Tensor:
        """`W_V`, `[heads * width, d]`."""
        weight: Tensor = self.layer.weight
        return weight.flatten(1).unflatten(0, (self.heads, -1))[:, -self.width :].flatten(0, 1)

    @contextmanager
    def steer(self, signal: Signal) -> Iterator[None]:
        """Inside the block, `V = BN(W_V (X + signal))`; the signal is a map `[B, C, H, W]`."""

        def add_to_values(layer: nn.Module, _: object, projected: Tensor) -> Tensor:
            sent = signal.tensor if isinstance(signal, ValueSignal) else F.conv2d(signal, self.weight[..., None, None])
            if projected.ndim == 4:
                values = projected.unflatten(1, (self.heads, -1))[:, :, -self.width :]
                values += sent.unflatten(1, (self.heads, -1))
            else:
                values = projected.unflatten(-1, (self.heads, -1))[..., -self.width :]
                values += sent.flatten(2).transpose(1, 2).unflatten(-1, (self.heads, -1))
            return projected

        handle = self.layer.register_forward_hook(add_to_values)
        try:
            yield
        finally:
            handle.remove()


def find_values(block: Any) -> Values:
    """Return the values of a block's attention, or of the attention that halves the map."""
    attention = block.attn if hasattr(block, "attn") else block.attn_downsample
    projection = attention.qkv if hasattr(attention, "qkv") else attention.kv
    return Values(projection, attention.num_heads, attention.val_dim)


class LevitBackbone(Backbone):
    """Any timm `Levit`, of linear layers or of convolutions. A level is a block, or the attention between two stages.

    Between two stages, attention with fewer queries than keys halves the map. It has values like any other, and a
    deconvolution of stride 2 undoes it, as for the stages of a ConvNeXt (section 4.4). If the map has an odd side, the
    deconvolution gives one row or column too many, which is cropped. A batch norm follows the projection of q, k and v,
    so `V = BN(W_V (X + X_td))`, which is linear in the signal in evaluation mode.

    `z` is the last block's map before the classifier, which norms only pooled features. Maps of attention with a
    position bias exist within a stage only, so feature energy is drawn.
    """

    channel_dim = 1
    adapter_targets = ("qkv.linear", "kv.linear")
    module: Levit

    def __init__(self, module: Levit, preprocessing: Preprocessing) -> None:
        self.module = module
        self.blocks: list[Any] = []
        self.levels = []
        width = module.embed_dim[0]
        stages: list[Any] = list(module.stages)
        for stage, width_out in zip(stages, module.embed_dim, strict=True):
            if not isinstance(stage.downsample, nn.Identity):
                self.blocks.append(stage.downsample)
                self.levels.append(Level(width, width_out, "deconvolution", stage.downsample.attn_downsample.stride))
            self.blocks.extend(stage.blocks)
            self.levels.extend([Level(width_out, width_out, "deconvolution")] * len(stage.blocks))
            width = width_out
        self.width = self.head_width = module.num_features
        self.level_modules = self.blocks
        self.preprocessing = preprocessing

    def enter(self, inputs: Tensor) -> State:
        """Return the map `[B, C, H, W]` of the convolutional stem."""
        return State(self.module.stem(inputs))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block. The signal `[B, C, H, W]` is added to the input of the value projection."""
        block, hidden = self.blocks[index], state.hidden
        if signal is None:
            return State(self._run(block, hidden))
        with find_values(block).steer(_fit_signal(signal, hidden)):
            return State(self._run(block, hidden))

    def value_weight(self, index: int) -> Tensor:
        """Return the value rows of every head, `[values, C]`."""
        return find_values(self.blocks[index]).weight

    def leave(self, state: State) -> Readout:
        """Return the last map `[B, C, H, W]` and its mean `[B, C]`."""
        features = state.hidden if self.module.use_conv else _to_tokens(state.hidden)
        return Readout(
            z=state.hidden, compared=state.hidden, pooled=self.module.forward_head(features, pre_logits=True)
        )

    def tap(self, state: State) -> Readout:
        """Return a block's map."""
        return Readout(z=state.hidden, compared=state.hidden, pooled=state.hidden)

    def stock(self, inputs: Tensor) -> Tensor:
        """Run timm's own forward pass up to the pooled features `[B, C]`."""
        return self.module.forward_head(self.module.forward_features(inputs), pre_logits=True)

    @property
    def licence(self) -> str | None:
        """The licence that timm records for published weights."""
        return get_licence(self.module)

    def example(self, batch: int) -> Tensor:
        """Return random images `[batch, 3, H, W]` of the preprocessed size."""
        return torch.randn(batch, 3, *self.require_preprocessing().image_size)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the last map, which the position biases fix."""
        rows, columns = self.blocks[-1].attn.resolution
        return rows, columns

    def _run(self, block: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        if self.module.use_conv:
            return block(hidden)
        attention: Any = getattr(block, "attn", None)
        tokens = block(_to_tokens(hidden))
        rows, columns = hidden.shape[-2:]
        if attention is None:
            stride = block.attn_downsample.stride  # type: ignore[attr-defined]
            rows, columns = -(-rows // stride), -(-columns // stride)
        return tokens.transpose(1, 2).unflatten(-1, (rows, columns))


def _to_tokens(map: Tensor) -> Tensor:
    """Return a map `[B, C, H, W]` as tokens `[B, N, C]`."""
    return map.flatten(2).transpose(1, 2)


def _fit_signal(signal: Signal, hidden: Tensor) -> Signal:
    """Crop a signal of any kind at the bottom and the right; no effect if the strides divide the map."""
    rows, columns = hidden.shape[-2:]
    if isinstance(signal, ValueSignal):
        return ValueSignal(signal.tensor[..., :rows, :columns])
    return signal[..., :rows, :columns]
