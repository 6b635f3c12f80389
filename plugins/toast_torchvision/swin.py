"""Stock torchvision `SwinTransformer` models as backbones with two passes: signals enter at the values of windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from timm.models.swin_transformer import window_partition
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.models import SwinTransformer
from torchvision.models.swin_transformer import SwinTransformerBlock

from toast_cli.plugin import Backbone, Level, Preprocessing, Readout, Signal, State, Trace, ValueSignal
from toast_timm.map_layout import to_channels_first, to_channels_last
from toast_torchvision.classifier import leave_out


def _partition_windows(attention: Any, map: Tensor) -> Tensor:
    """Return a map `[B, H, W, C]` in windows `[B windows, N, C]`, padded, shifted and cut as torchvision's tokens."""
    window, shift = attention.window_size, attention.shift_size
    below, right = (-side % length for side, length in zip(map.shape[1:3], window, strict=True))
    map = F.pad(map, (0, 0, 0, right, 0, below))
    shifts = [0 if length >= side else step for side, length, step in zip(map.shape[1:3], window, shift, strict=True)]
    if any(shifts):
        map = torch.roll(map, shifts=[-step for step in shifts], dims=(1, 2))
    return window_partition(map, tuple(window)).flatten(1, 2)


class _ProjectionMode(TorchFunctionMode):
    """Compute the q, k, v projection of an attention layer with another function inside the block.

    torchvision gives its attention function the weights of the projection and never calls the layer, so the projection
    is recognized by its weight.
    """

    def __init__(self, attention: Any, project: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attention, self.project, self.projected = attention, project, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[1] is self.attention.qkv.weight:
            self.projected = True
            return self.project(*args)
        return func(*args, **(kwargs or {}))


@contextmanager
def _steer_window_values(attention: Any, signal: Signal) -> Iterator[None]:
    """Inside the block, `V = W_V (X + signal) + b_V` (section 3.1, step iv); Q and K are unchanged.

    The signal is a map `[B, H, W, C]`, or the values' own if it is a `ValueSignal`.
    """
    windows = _partition_windows(attention, signal.tensor if isinstance(signal, ValueSignal) else signal)

    def project(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        qkv = F.linear(tokens, weight, bias)
        first = 2 * len(weight) // 3
        added = windows if isinstance(signal, ValueSignal) else F.linear(windows.to(weight.dtype), weight[first:])
        qkv[..., first:] += added
        return qkv

    with _ProjectionMode(attention, project) as mode:
        yield
    assert mode.projected, "torchvision's attention no longer multiplies by the weight of its projection"


class TorchvisionSwinBackbone(Backbone):
    """Any torchvision `SwinTransformer`, V1 or V2. A level is a block.

    Signals enter at the values inside the block's windows. X is what the attention receives: the tokens after the first
    norm (V1), or the residual stream itself (V2). The patch merging before a stage belongs to the stage's first block.
    `A_l` undoes it with a deconvolution of stride 2, and this level's signal is added to the input of the merging, as
    ConvNeXt's is to that of its down-sampling (section 4.4). Merging pads an odd side by one; the signal is cropped.

    `z` is the last map after the final norm. There are no attention maps: attention exists only between the tokens of a
    window, and windows differ between blocks.
    """

    channel_dim = 1
    any_image_size = True
    adapter_targets = ("mlp.0", "mlp.3")  # attention uses the weights of its layers without calling them
    module: SwinTransformer

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        assert isinstance(module, SwinTransformer)
        self.module, self.preprocessing = module, preprocessing
        self.width = self.head_width = module.head.in_features
        self.unused_parts = [module.head]
        self.blocks: list[tuple[nn.Module | None, Any]] = []
        """The merging before a block, or None, and the block."""
        self.levels = []
        merging = None
        for part in list(module.features)[1:]:
            if not isinstance(part, nn.Sequential):
                merging = part
                continue
            for block in part:
                assert isinstance(block, SwinTransformerBlock)
                width = block.attn.qkv.in_features
                width_in = width if merging is None else self.levels[-1].width_out
                self.levels.append(Level(width_in, width, "deconvolution", 1 if merging is None else 2))
                self.blocks.append((merging, block))
                merging = None
        self.level_modules = [part for pair in self.blocks for part in pair if part is not None]

    def enter(self, inputs: Tensor) -> State:
        """Return the patches `[B, C, H, W]` of images `[B, 3, H, W]`."""
        return State(to_channels_first(self.module.features[0](inputs)))

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block, after the merging before it. The signal `[B, C, H, W]` enters as the class says."""
        merging, block = self.blocks[index]
        hidden = to_channels_last(state.hidden)
        attached: Any = nullcontext()
        if signal is not None:
            rows, columns = hidden.shape[1:3]
            tensor = signal.tensor if isinstance(signal, ValueSignal) else signal
            entering = to_channels_last(tensor[..., :rows, :columns])
            if merging is None:
                entered = ValueSignal(entering) if isinstance(signal, ValueSignal) else entering
                attached = _steer_window_values(block.attn, entered)
            else:
                hidden = hidden + entering
        with attached:
            hidden = block(hidden if merging is None else merging(hidden))
        return State(to_channels_first(hidden))

    def value_weight(self, index: int) -> Tensor | None:
        """Return the value third of a block's fused projection, `[C, C]`; None for a level with a merging."""
        merging, block = self.blocks[index]
        if merging is not None:
            return None
        weight: Tensor = block.attn.qkv.weight
        return weight[2 * len(weight) // 3 :]

    def leave(self, state: State) -> Readout:
        """Return the last map after the final norm `[B, d, H, W]` and its mean `[B, d]`."""
        swin = self.module
        z = swin.permute(swin.norm(to_channels_last(state.hidden)))
        return Readout(z=z, compared=z, pooled=swin.flatten(swin.avgpool(z)))

    def tap(self, state: State) -> Readout:
        """Return a level's map: the final norm only fits the channels of the last stage."""
        return Readout(z=state.hidden, compared=state.hidden, pooled=state.hidden)

    def stock(self, inputs: Tensor) -> Tensor:
        """Run torchvision's own forward pass up to the pooled features `[B, d]`."""
        with leave_out(self.module, "head"):
            return self.module(inputs)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the last map."""
        patch = self.module.features[0][0].kernel_size
        rows, columns = (side // cells for side, cells in zip(inputs.shape[-2:], patch, strict=True))
        for merging, _ in self.blocks:
            if merging is not None:
                rows, columns = -(-rows // 2), -(-columns // 2)
        return rows, columns
