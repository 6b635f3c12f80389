"""A stock timm `HieraDet` (SAM 2's image encoder) as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from typing import Any

from timm.models.hieradet_sam2 import HieraDet, _calc_pad, window_partition
from torch import Tensor
from torch.nn import functional as F

from toast_cli.plugin import Preprocessing, Readout, Signal, State
from toast_timm.staged_transformer import StagedTransformer, make_level, require_same_stride
from toast_timm.value_projection import find_value_projection, map_signal


class HieraDetBackbone(StagedTransformer):
    """Any timm `HieraDet`. A level is a block.

    `V = W_V (X + X_td,l) + b_V` in every block (section 3.1, step iv), where X is what its attention receives: the
    signal goes through the same padding, with zeros, and the same windows as X. A block that begins a stage pools its
    queries only: its keys and values, and so the signal, have the finer map of its input, and the level is undone by a
    deconvolution of the pooling's stride (section 4.4).

    `z` is the map after the last block before any norm, as the model pools before its norm. The map compared with xi is
    `z` after that norm over channels, as for ConvNeXt.

    Raises:
        ToastError: The model's strides differ between rows and columns.
    """

    adapter_targets = ("qkv",)
    module: HieraDet

    def __init__(self, module: HieraDet, preprocessing: Preprocessing) -> None:
        blocks: Any = module.blocks
        levels = [
            make_level(block.dim, block.dim_out, require_same_stride(module, block.q_stride or (1, 1)))
            for block in blocks
        ]
        stride = require_same_stride(module, module.patch_embed.proj.stride)
        super().__init__(module, preprocessing, levels, list(blocks), stride)
        # The window of the position embedding is repeated, and every pooling must divide its map.
        self.image_multiple = max(stride * module.window_spec[0], self.reduction)
        self.values = [find_value_projection(block.attn) for block in blocks]

    def enter(self, inputs: Tensor) -> State:
        """Return the embedded patches of images `[B, 3, H, W]` as a map."""
        self.check_image_size(inputs.shape[-2:])
        return State(self.module._pos_embed(self.module.patch_embed(inputs)).permute(0, 3, 1, 2))

    def run_level(self, index: int, hidden: Tensor, signal: Signal | None) -> Tensor:
        """Run one stock block. The signal is added to the input of the value projection."""
        block: Any = self.module.blocks[index]
        tokens = hidden.permute(0, 2, 3, 1)

        def partition(sent: Tensor) -> Tensor:
            sent = sent.permute(0, 2, 3, 1)
            if not block.is_windowed:
                return sent
            *_, bottom, right = _calc_pad(sent.shape[1], sent.shape[2], block.window_size)
            return window_partition(F.pad(sent, (0, 0, 0, right, 0, bottom)), block.window_size)

        if signal is None:
            tokens = block(tokens)
        else:
            with self.values[index].steer(map_signal(signal, partition)):
                tokens = block(tokens)
        return tokens.permute(0, 3, 1, 2)

    def value_weight(self, index: int) -> Tensor:
        """Return the value third of the fused projection, `[values, C]`."""
        return self.values[index].value_weight

    def leave(self, state: State) -> Readout:
        """Return the last map `[B, d, H, W]`, the normalized map, and the model's own pooled features."""
        cells = state.hidden.permute(0, 2, 3, 1)
        pooled = self.module.forward_head(cells, pre_logits=True)
        return Readout(z=state.hidden, compared=self.module.head.norm(cells).permute(0, 3, 1, 2), pooled=pooled)
