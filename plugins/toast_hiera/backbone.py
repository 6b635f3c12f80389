"""A stock timm `Hiera` as a backbone with two passes: signals enter at the values of mask-unit attention."""

from __future__ import annotations

from math import isqrt
from typing import Any

from timm.models.hiera import Hiera, Unroll
from torch import Tensor

from toast_cli.plugin import Preprocessing, Readout, Signal, State, ToastError
from toast_timm.map_layout import flatten_map
from toast_timm.staged_transformer import StagedTransformer, make_level, require_same_stride
from toast_timm.value_projection import find_value_projection, map_signal


class HieraBackbone(StagedTransformer):
    """Any timm `Hiera` for images. A level is a block.

    `V = W_V (X + X_td,l) + b_V` in every block (section 3.1, step iv), where X is what its attention receives. A block
    that begins a stage pools its queries only: its keys and values, and so the signal, have the finer map of its input,
    and the level is undone by a deconvolution of the pooling's stride (section 4.4).

    Hiera orders its tokens by mask units. The levels' inputs and outputs are put back into rows and columns here, which
    changes no number, because a deconvolution maps each cell to the cells below it.

    `z` is the map after the last block before any norm, as the model pools before its norm. The map compared with xi is
    `z` after that norm over channels, as for ConvNeXt.

    Raises:
        ToastError: The model takes videos, or its strides differ between rows and columns.
    """

    adapter_targets = ("qkv",)
    module: Hiera

    def __init__(self, module: Hiera, preprocessing: Preprocessing) -> None:
        if len(module.patch_stride) != 2:
            raise ToastError(
                "This Hiera takes videos.",
                "toast reads images.",
                "Choose a Hiera with a patch stride of two numbers.",
                code="backbone.cannot-steer",
            )
        require_same_stride(module, module.q_stride)
        stride = require_same_stride(module, module.patch_stride)
        blocks: Any = module.blocks
        levels = [make_level(block.dim, block.dim_out, isqrt(block.attn.q_stride)) for block in blocks]
        super().__init__(module, preprocessing, levels, list(blocks), stride)
        height, width = (cells * stride for cells in module.tokens_spatial_shape)
        self.fixed_size = (height, width)
        self.image_multiple = stride * max(module.mask_unit_size)
        self.values = [find_value_projection(block.attn) for block in blocks]
        orders = [module.reroll.schedule[index] for index in range(len(levels))]
        self.unrolls = [Unroll(size, (1, 1), strides) for strides, size in (orders[0], *orders)]
        """The order of the tokens before each level, and after the last."""

    def enter(self, inputs: Tensor) -> State:
        """Return the embedded patches of images `[B, 3, H, W]` as a map."""
        self.check_image_size(inputs.shape[-2:])
        tokens = self.module._pos_embed(self.module.patch_embed(inputs))
        return State(tokens.transpose(1, 2).unflatten(2, self.module.tokens_spatial_shape))

    def run_level(self, index: int, hidden: Tensor, signal: Signal | None) -> Tensor:
        """Run one stock block. The signal is added to the input of the value projection."""
        block, tokens = self.module.blocks[index], self._unroll(index, hidden)
        if signal is None:
            tokens = block(tokens)
        else:
            with self.values[index].steer(map_signal(signal, lambda sent: self._unroll(index, sent))):
                tokens = block(tokens)
        return self.module.reroll(tokens, index).permute(0, 3, 1, 2)

    def value_weight(self, index: int) -> Tensor:
        """Return the value third of the fused projection, `[values, C]`."""
        return self.values[index].value_weight

    def leave(self, state: State) -> Readout:
        """Return the last map `[B, d, H, W]`, the normalized map, and the model's own pooled features."""
        z = state.hidden
        compared = self.module.head.norm(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        tokens = self._unroll(len(self.levels), z)
        return Readout(z=z, compared=compared, pooled=self.module.forward_head(tokens, pre_logits=True))

    def _unroll(self, index: int, hidden: Tensor) -> Tensor:
        """Return a map as tokens `[B, N, C]` in the order that the block expects."""
        return self.unrolls[index](flatten_map(hidden)).contiguous()
