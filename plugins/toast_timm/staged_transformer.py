"""The base class of timm's staged transformers, whose maps `[B, C, H, W]` become smaller from stage to stage."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from toast_cli.plugin import Level, Preprocessing, Readout, Signal, State, ToastError, Trace, UsageError
from toast_timm.backbone import TimmBackbone
from toast_timm.map_layout import fit_map
from toast_timm.value_projection import map_signal


def make_level(width_in: int, width_out: int, stride: int = 1) -> Level:
    """Return a level on maps. Its `A_l` is the deconvolution that undoes `stride` (section 4.4).

    Of stride 1 it is a linear layer over the channels of every cell, as in a plain transformer (section 3.1).
    """
    return Level(width_in, width_out, "deconvolution", stride)


def fit_signal(signal: Signal, hidden: Tensor) -> Signal:
    """Crop or pad a signal at the bottom and the right to the size of a map, if a stride does not divide the map."""
    return map_signal(signal, lambda tensor: fit_map(tensor, hidden))


def require_same_stride(module: nn.Module, strides: Sequence[int]) -> int:
    """Return the stride, which must be the same for rows and columns.

    Raises:
        ToastError: It differs.
    """
    if len(set(strides)) != 1:
        raise ToastError(
            f"This {type(module).__name__} has strides of {' × '.join(map(str, strides))}.",
            "A feedback layer undoes a stride that is the same for rows and columns.",
            "Choose a model with square strides.",
            code="backbone.cannot-steer",
        )
    return strides[0]


class StagedTransformer(TimmBackbone):
    """A staged transformer of timm. A level is a block, with the down-sampling in it or before it.

    The state is a map `[B, C, H, W]`, in whatever order the model keeps its tokens. A level with a stride is undone by
    a deconvolution, as in the paper's ConvNeXt (section 4.4); a deconvolution of stride 1, which undoes all others, is
    the linear layer of section 3.1. The embedding of patches (the stem) belongs to no level.

    Attention is windowed, pooled or to a reduced map, so there are no maps over all cells, and `has_attention` is
    False. A subclass defines `enter`, `run_level` and `leave`, and the sizes of images that its model takes:
    `image_multiple` divides both sides, and `fixed_size` is the only size unless it is None.
    """

    channel_dim = 1
    module: Any
    image_multiple: int = 1
    fixed_size: tuple[int, int] | None = None

    def __init__(
        self,
        module: Any,
        preprocessing: Preprocessing,
        levels: Sequence[Level],
        parts: Sequence[nn.Module],
        stem_stride: int,
    ) -> None:
        self.module = module
        self.width, self.head_width = module.num_features, module.head_hidden_size
        self.preprocessing = preprocessing
        self.levels = list(levels)
        self.level_modules = list(parts)
        self.reduction = stem_stride * prod(level.stride for level in levels)

    @abstractmethod
    def run_level(self, index: int, hidden: Tensor, signal: Signal | None) -> Tensor:
        """Run one level on a map, steered by a signal of its rows and columns unless it is None."""

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock block. The signal `[B, C, H, W]` enters as described in the class."""
        return State(self.run_level(index, state.hidden, None if signal is None else fit_signal(signal, state.hidden)))

    def check_image_size(self, size: Sequence[int]) -> None:
        """Check that the model takes images of this (height, width).

        Raises:
            UsageError: It does not.
        """
        name, (height, width) = type(self.module).__name__, size
        if self.fixed_size is not None and (height, width) != self.fixed_size:
            raise UsageError(
                f"This {name} takes images of {self.fixed_size[0]} × {self.fixed_size[1]} pixels, "
                f"not {height} × {width}.",
                "Its position embeddings or windows were built for that size.",
                "Set backbone.image_size, or build the model with img_size.",
                code="backbone.wrong-image-size",
            )
        if height % self.image_multiple or width % self.image_multiple:
            raise UsageError(
                f"{name} cannot divide an image of {height} × {width} pixels into its cells.",
                f"Both sides must be multiples of {self.image_multiple}.",
                f"Set backbone.image_size to multiples of {self.image_multiple}.",
                code="backbone.wrong-image-size",
            )

    def tap(self, state: State) -> Readout:
        """Return a level's map: the final norm only fits the channels of the last stage."""
        return Readout(z=state.hidden, compared=state.hidden, pooled=state.hidden)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the last map: the cells of a stride that leaves something over count too."""
        height, width = inputs.shape[-2:]
        return -(-height // self.reduction), -(-width // self.reduction)
