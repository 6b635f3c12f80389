"""Convolutional networks of any library as backbones with two passes: signals enter before each stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from toast_cli.plugin import Backbone, Level, Preprocessing, Readout, Signal, State, ToastError, Trace, ValueSignal
from toast_timm.map_layout import fit_map


class StagedConvNet(Backbone):
    """A network that is a sequence of stages. A level is a stage with the down-sampling before it (section 4.4).

    `X_td,l` is added to the input of a stage's down-sampling, so level 1's signal is added to the image. `z` is the
    last stage's map. The channels and the stride of every stage are measured with an empty image.

    If a stage's stride does not divide its input, the deconvolution gives a few pixels less or more than the input.
    The signal is then zero in the missing pixels, or cut.

    Args:
        module: The network.
        preprocessing: The images that it was trained on.
        stages: The paths of the modules that each stage calls in turn.
        rounding: Whether a stage rounds the size of its map down or up if its stride does not divide it.

    Raises:
        ToastError: A stage does not give maps `[B, C, H, W]`.
    """

    channel_dim = 1
    any_image_size = True

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Preprocessing,
        stages: Sequence[Sequence[str]],
        rounding: Literal["down", "up"] = "up",
    ) -> None:
        self.module, self.preprocessing = module, preprocessing
        self.stages = [list(stage) for stage in stages]
        self.rounding = rounding
        self.levels = list(self._measure_levels())
        self.width = self.head_width = self.levels[-1].width_out
        self.level_modules = [module.get_submodule(stage[-1]) for stage in self.stages]

    def enter(self, inputs: Tensor) -> State:
        """Return the images `[B, 3, H, W]`: the stem belongs to level 1."""
        return State(inputs)

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock stage. The signal `[B, C, H, W]` is added to its input."""
        hidden = state.hidden
        if signal is not None:
            assert not isinstance(signal, ValueSignal)  # this family has no value_weight
            hidden = hidden + fit_map(signal, hidden)
        return State(self._run_stage(index, hidden))

    def leave(self, state: State) -> Readout:
        """Return the last stage's map `[B, C, H, W]`, twice, and its mean `[B, d]`."""
        z = state.hidden
        return Readout(z=z, compared=z, pooled=z.mean(dim=(-2, -1)))

    def tap(self, state: State) -> Readout:
        """Return a stage's map: what follows the last stage only fits its channels."""
        return Readout(z=state.hidden, compared=state.hidden, pooled=state.hidden)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the last stage's map."""
        rows, columns = inputs.shape[-2:]
        for level in self.levels:
            rows, columns = self._divide(rows, level.stride), self._divide(columns, level.stride)
        return rows, columns

    def _divide(self, side: int, stride: int) -> int:
        return side // stride if self.rounding == "down" else -(-side // stride)

    def _run_stage(self, index: int, hidden: Tensor) -> Tensor:
        for path in self.stages[index]:
            hidden = self.module.get_submodule(path)(hidden)
        return hidden

    @torch.no_grad()
    def _measure_levels(self) -> list[Level]:
        weight = next(self.module.parameters())
        hidden = torch.zeros(1, 3, *self.require_preprocessing().image_size, device=weight.device, dtype=weight.dtype)
        was_training = self.module.training
        self.module.eval()  # batch normalization must not count the empty image
        levels = []
        try:
            for index in range(len(self.stages)):
                out = self._run_stage(index, hidden)
                if not isinstance(out, Tensor) or out.ndim != 4:
                    raise _build_no_maps_error(self.module)
                stride = max(1, math.ceil(hidden.shape[-1] / out.shape[-1] - 0.5))
                levels.append(Level(hidden.shape[1], out.shape[1], "deconvolution", stride))
                hidden = out
        finally:
            self.module.train(was_training)
        return levels


def _build_no_maps_error(module: nn.Module) -> ToastError:
    return ToastError(
        f"{type(module).__name__} cannot be steered.",
        "Its stages do not give maps of channels, rows and columns.",
        "Choose a ConvNeXt or ResNet.",
        code="backbone.cannot-steer",
    )
