"""A stock convolutional network of timm as a backbone with two passes: signals enter at the input of each stage."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from toast_cli.plugin import Level, Preprocessing, Readout, Signal, State, Trace, ValueSignal
from toast_convnet.map_format import MapFormat
from toast_convnet.stages import (
    StagedNetwork,
    accepts_size,
    copy_without_data,
    cut_into_stages,
    make_images_without_data,
)
from toast_timm.backbone import TimmBackbone
from toast_timm.map_layout import fit_map


class ConvNetBackbone(TimmBackbone):
    """Any network of timm with stages. A level is a stage as timm's `feature_info` names it (section 4.4).

    `X_td,l` is added to the input of a stage, so level 1's signal is added to the image. `z` is the last stage's map.
    The map compared with xi is the output of `forward_features`, where the network ends with a norm that keeps the
    shape of `z`, else `z`.

    If a stage's stride does not divide its input, the deconvolution gives a few pixels less or more than the input. The
    signal is zero in the missing pixels.

    Raises:
        ToastError: The model cannot be cut into stages.
    """

    channel_dim = 1
    module: Any

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        self.module = module
        self.preprocessing = preprocessing
        self._network: StagedNetwork = cut_into_stages(module, preprocessing.image_size)
        self.levels = []
        width, reduction = 3, 1
        for stage in self._network.stages:
            self.levels.append(Level(width, stage.width, "deconvolution", stage.reduction // reduction))
            width, reduction = stage.width, stage.reduction
        self.width, self.head_width = width, self._network.head_width
        called = [name for stage in self._network.stages for name in stage.part.list_modules()]
        parts = [module.get_submodule(name) for name in called]
        self.level_modules = [part for part in parts if next(part.parameters(), None) is not None]
        self.adapter_targets = [
            f"{name}.{own}" if own else name
            for name in called
            for own, part in module.get_submodule(name).named_modules()
            if _takes_low_rank_factors(part)
        ]
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}
        if self._network.merged:
            self.notes = (
                f"Stages {', '.join(self._network.merged)} pass more than one map on; "
                "each of them forms one level with the stage that follows.",
            )

    def enter(self, inputs: Tensor) -> State:
        """Return the images `[B, 3, H, W]`: the stem belongs to level 1."""
        return State(inputs)

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock stage. The signal `[B, C, H, W]` is added to its input."""
        hidden, stage = state.hidden, self._network.stages[index]
        if signal is not None:
            assert not isinstance(signal, ValueSignal)  # this family has no value_weight
            hidden = hidden + fit_map(signal, hidden)
        elif stage.overwrites:
            hidden = hidden.clone()
        return State(stage.run(self.module, hidden))

    def leave(self, state: State) -> Readout:
        """Return the last stage's map `[B, C, H, W]`, the map compared with xi, and the pooled features `[B, d]`."""
        z, network = state.hidden, self._network
        format: MapFormat = network.stages[-1].exit
        last = format.from_map(z.clone() if network.tail_overwrites else z)
        features = network.tail.run(self.module, last)
        pooled = self.module.forward_head(features, pre_logits=True)
        same_shape = isinstance(features, Tensor) and features.shape == last.shape
        return Readout(z=z, compared=format.to_map(features) if same_shape else z, pooled=pooled)

    def tap(self, state: State) -> Readout:
        """Return a stage's map: the end of the network only fits the channels of the last stage."""
        return Readout(z=state.hidden, compared=state.hidden, pooled=state.hidden)

    @cached_property
    def any_image_size(self) -> bool:  # type: ignore[override]
        """Whether images may have another size than that of the model's configuration."""
        height, width = self.require_preprocessing().image_size
        reduction = self._network.stages[-1].reduction
        return accepts_size(self.module, (height + reduction, width + 2 * reduction))

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the last stage's map."""
        height, width = inputs.shape[-2:]
        if (height, width) not in self._grids:
            self._grids[height, width] = self._compute_grid((height, width))
        return self._grids[height, width]

    @torch.no_grad()
    def _compute_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        network = copy_without_data(self.module)
        map = make_images_without_data(network, size)
        for stage in self._network.stages:
            map = stage.run(network, map)
        rows, columns = map.shape[-2:]
        return rows, columns


def _takes_low_rank_factors(part: nn.Module) -> bool:
    """Return whether a layer is one that low-rank factors fit: PEFT knows neither dilation nor other weights of timm.

    The factors of a grouped convolution would need a rank that the groups divide.
    """
    if type(part) is nn.Conv2d:
        return part.groups == 1 and part.dilation == (1, 1) and isinstance(part.padding, tuple)
    return type(part) is nn.Linear
