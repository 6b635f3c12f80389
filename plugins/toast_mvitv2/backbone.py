"""A stock timm `MultiScaleVit` (MViTv2) as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from typing import Any

from timm.models.mvitv2 import MultiScaleAttention, MultiScaleVit
from torch import Tensor

from toast_cli.plugin import Preprocessing, Readout, Signal, State, ToastError
from toast_timm.any_model import make_wrap
from toast_timm.map_layout import flatten_map
from toast_timm.staged_transformer import StagedTransformer, make_level, require_same_stride
from toast_timm.value_projection import find_value_projection, map_signal


def _find_input_size(module: MultiScaleVit) -> tuple[int, int] | None:
    """Return the (height, width) that the tables of relative positions were built for, or None if there are none."""
    stage: Any = module.stages[0]
    if stage.blocks[0].attn.rel_pos_type != "spatial":
        return None
    height, width = (cells * module.feature_info[0]["reduction"] for cells in stage.feat_size)
    return height, width


class MvitBackbone(StagedTransformer):
    """A timm `MultiScaleVit` without a class token. A level is a block.

    `V = pool(W_V (X + X_td,l) + b_V)` in every block (section 3.1, step iv): the signal goes through the same pooling
    and norm as X does, after the value projection. A block that begins a stage pools its queries more than its keys and
    values: these, and so the signal, begin from the finer map of its input, and the level is undone by a deconvolution
    of the queries' stride (section 4.4). Pooled queries are added to the output of the attention, and carry no signal.

    `z` is the map after the model's final norm, as for ViT.

    Images have the size that the model was built for, which is square, as timm builds one table of relative positions
    for both axes.

    Raises:
        ToastError: The model has a class token, pools before its projections, or its strides differ between rows and
            columns.
    """

    adapter_targets = ("qkv",)
    module: MultiScaleVit

    def __init__(self, module: MultiScaleVit, preprocessing: Preprocessing) -> None:
        if module.cls_token is not None:
            raise ToastError(
                "This MultiScaleVit has a class token.",
                "A stage's down-sampling is undone on a map, in which a class token is no cell.",
                "Choose the model without one, for example mvitv2_small instead of mvitv2_small_cls.",
                code="backbone.cannot-steer",
            )
        blocks: Any = [block for stage in module.stages for block in stage.blocks]
        if not all(isinstance(block.attn, MultiScaleAttention) for block in blocks):
            raise ToastError(
                "This MultiScaleVit pools its tokens before the value projection.",
                "TOAST adds its signal to the input of that projection, which has no token for each cell of the level.",
                "Choose a model with pool_first=False, as all that timm names are.",
                code="backbone.cannot-steer",
            )
        levels = []
        for block in blocks:
            pool = block.shortcut_pool_attn
            strides = (1, 1) if pool is None else pool.stride
            levels.append(make_level(block.dim, block.dim_out, require_same_stride(module, strides)))
        stride = require_same_stride(module, module.patch_embed.proj.stride)
        super().__init__(module, preprocessing, levels, blocks, stride)
        self.fixed_size, self.image_multiple = _find_input_size(module), self.reduction
        self.values = [find_value_projection(block.attn) for block in blocks]

    def enter(self, inputs: Tensor) -> State:
        """Return the embedded patches of images `[B, 3, H, W]` as a map."""
        self.check_image_size(inputs.shape[-2:])
        tokens, size = self.module.patch_embed(inputs)
        if self.module.pos_embed is not None:
            tokens = tokens + self.module.pos_embed
        return State(tokens.transpose(1, 2).unflatten(2, size))

    def run_level(self, index: int, hidden: Tensor, signal: Signal | None) -> Tensor:
        """Run one stock block. The signal is added to the input of the value projection."""
        block, tokens, size = self.level_modules[index], flatten_map(hidden), list(hidden.shape[-2:])
        if signal is None:
            tokens, size = block(tokens, size)
        else:
            with self.values[index].steer(map_signal(signal, flatten_map)):
                tokens, size = block(tokens, size)
        return tokens.transpose(1, 2).unflatten(2, tuple(size))

    def value_weight(self, index: int) -> Tensor:
        """Return the value third of the fused projection, `[values, C]`."""
        return self.values[index].value_weight

    def leave(self, state: State) -> Readout:
        """Return the map after the final norm `[B, d, H, W]` and the model's own pooled features `[B, d]`."""
        tokens = self.module.norm(flatten_map(state.hidden))
        z = tokens.transpose(1, 2).unflatten(2, state.hidden.shape[-2:])
        return Readout(z=z, compared=z, pooled=self.module.forward_head(tokens, pre_logits=True))


wrap_mvitv2 = make_wrap(MvitBackbone, MultiScaleVit, _find_input_size)
