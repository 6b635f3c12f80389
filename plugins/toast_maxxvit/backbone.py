"""A stock timm `MaxxVit` (MaxViT, CoAtNet, MaxxViT) as a backbone with two passes."""

from __future__ import annotations

from typing import Any

from timm.models.maxxvit import Downsample2d, MaxxVit, MaxxVitBlock, ParallelMaxxVitBlock, TransformerBlock2d
from torch import Tensor, nn

from toast_cli.plugin import Preprocessing, Readout, Signal, State
from toast_maxxvit.parts import ConvolutionPart, Part, PartitionPart, TransformerPart
from toast_timm.any_model import make_wrap
from toast_timm.staged_transformer import StagedTransformer, make_level


def find_stride(block: Any) -> int:
    """Return the stride of a convolution or transformer block (or of the first of several convolutions)."""
    first = block[0] if isinstance(block, nn.Sequential) else block
    return 2 if isinstance(first.shortcut, Downsample2d) else 1


def list_parts(block: Any, width_in: int, width_out: int) -> list[Part]:
    """Return the levels of a stock block, first to last."""
    if isinstance(block, TransformerBlock2d):
        return [TransformerPart(block, width_in, width_out, find_stride(block))]
    if not isinstance(block, (MaxxVitBlock, ParallelMaxxVitBlock)):
        return [ConvolutionPart(block, width_in, width_out, find_stride(block))]
    convolution = ConvolutionPart(block.conv, width_in, width_out, find_stride(block.conv))
    attentions = [block.attn] if isinstance(block, ParallelMaxxVitBlock) else [block.attn_block, block.attn_grid]
    return [convolution, *(PartitionPart(part, width_out, width_out) for part in attentions if part is not None)]


class MaxxVitBackbone(StagedTransformer):
    """Any timm `MaxxVit`. A level is a residual block: convolutions, or attention with its MLP.

    A block of MaxViT is three levels: its MBConv (or ConvNeXt) block, its attention in windows and that over a grid,
    which are whole transformer blocks. So every attention has a level of its own, as section 3.1 asks for.

    In attention blocks, `V = W_V (X + X_td,l) + b_V` (section 3.1, step iv): the signal is divided into the same
    windows as X. In CoAtNet, a transformer block that begins a stage pools X before its projections, and the signal
    alike. Two attentions in parallel receive the same signal.

    In convolutional blocks, `X_td,l` is added to the block's input, before its down-sampling, as in the paper's
    ConvNeXt (section 4.4). The level that begins a stage is undone by a deconvolution of its stride. The stem belongs
    to no level, as the embedding of patches in a ViT.

    `z` is the map after the model's final norm, as for ViT. Models that pool before their norm give `z` before it, and
    compare the map after that norm over channels with xi, as for ConvNeXt.

    Images have the size that the model was built for: windows and relative positions depend on it.
    """

    adapter_targets = ("qkv",)
    module: MaxxVit

    def __init__(self, module: MaxxVit, preprocessing: Preprocessing) -> None:
        self.parts: list[Part] = []
        stages: Any = module.stages
        width: int = module.stem.out_chs
        for stage, info in zip(stages, module.feature_info[1:], strict=True):
            for block in stage.blocks:
                self.parts += list_parts(block, width, info["num_chs"])
                width = info["num_chs"]
        levels = [make_level(part.width_in, part.width_out, part.stride) for part in self.parts]
        super().__init__(module, preprocessing, levels, [part.module for part in self.parts], module.stem.stride)
        self.fixed_size, self.image_multiple = tuple(module.img_size), self.reduction

    def enter(self, inputs: Tensor) -> State:
        """Return the stem's map of images `[B, 3, H, W]`."""
        self.check_image_size(inputs.shape[-2:])
        return State(self.module.stem(inputs))

    def run_level(self, index: int, hidden: Tensor, signal: Signal | None) -> Tensor:
        """Run one stock block, steered in its values or at its input."""
        return self.parts[index].run(hidden, signal)

    def value_weight(self, index: int) -> Tensor | None:
        """Return the value rows of the projections, `[values, C]`, or None for convolutions and pooled maxima."""
        return self.parts[index].value_weight()

    def steers_values(self, index: int) -> bool:
        """Return whether the level is attention, also if its signal is pooled by maxima."""
        return not isinstance(self.parts[index], ConvolutionPart)

    def leave(self, state: State) -> Readout:
        """Return `z` `[B, d, H, W]`, the normalized map, and the model's own pooled features `[B, d]`."""
        z, head = self.module.norm(state.hidden), self.module.head
        compared = head.norm(z) if hasattr(head, "norm") else z
        return Readout(z=z, compared=compared, pooled=self.module.forward_head(z, pre_logits=True))


wrap_maxxvit = make_wrap(MaxxVitBackbone, MaxxVit, lambda maxxvit: tuple(maxxvit.img_size))
