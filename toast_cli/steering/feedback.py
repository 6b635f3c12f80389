"""The feedback path: one layer per level, from the last to the first (section 3.1, step iii; 4.4 for ConvNets)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.backbones.base import Level

INIT_STD = 0.02
"""Standard deviation of the `random` start, as in the authors' code."""


class Deconvolution(nn.Module):
    """A deconvolution without bias whose kernel size equals its stride: `[B, C, H, W]` to `[B, C', H r, W r]`.

    Every cell maps to a patch of its own, so it is a 1 by 1 convolution to `C' r r` channels followed by a pixel
    shuffle. In this form its weight is one matrix, and low-rank factors and least squares treat it like a linear layer.
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.patch = nn.Conv2d(width_in, width_out * stride**2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map every cell to its patch."""
        patches = self.patch(x)
        return patches if self.stride == 1 else F.pixel_shuffle(patches, self.stride)


def build_feedback_layer(level: Level) -> nn.Module:
    """Build `A_l`, which maps a level's output back to the channels (and size) of its input; no bias."""
    if level.undo == "deconvolution":
        return Deconvolution(level.width_out, level.width_in, level.stride)
    return nn.Linear(level.width_out, level.width_in, bias=False)


def build_signal_layer(level: Level) -> nn.Module:
    """Build `B_l`, which transforms the feedback at a level into its signal; no bias."""
    if level.undo == "deconvolution":
        return nn.Conv2d(level.width_in, level.width_in, 1, bias=False)
    return nn.Linear(level.width_in, level.width_in, bias=False)


def get_base_weight(layer: nn.Module) -> nn.Parameter:
    """Return the weight of a feedback layer without the low-rank factors that it may have (see `lite`)."""
    layer = layer.patch if isinstance(layer, Deconvolution) else layer
    weight = getattr(layer, "base_layer", layer).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def compute_effective_weight(layer: nn.Module) -> Tensor:
    """Return the effective weight of a feedback layer: its own weight plus that of low-rank factors."""
    weight: Tensor = get_base_weight(layer)
    layer = layer.patch if isinstance(layer, Deconvolution) else layer
    # Detect a LoRA layer by its method, as importing PEFT takes seconds.
    delta = getattr(layer, "get_delta_weight", None)
    return weight if delta is None else weight + delta("default").reshape(weight.shape)


def get_low_rank_factors(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return the factors `b [C', r]` and `a [r, C]` of a layer with weight `W + b a`, or None if it has none."""
    lora: Any = layer  # detected by its attributes, as importing PEFT takes seconds
    if not hasattr(lora, "lora_A"):
        return None
    return lora.scaling["default"] * lora.lora_B["default"].weight, lora.lora_A["default"].weight


class FeedbackPath(nn.Module):
    """`u_l = A_l u_{l+1}` from the last level to the first with `u_{L+1} = s`; level l receives `X_td,l = B_l u_l`.

    `A[l]` and `B[l]` count levels from 0. The `random` start draws every weight from a normal distribution of standard
    deviation 0.02, so that each `A_l` shrinks its input. See `least_squares` for a start that does not.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__()
        self.A = nn.ModuleList(build_feedback_layer(level) for level in levels)
        self.B = nn.ModuleList(build_signal_layer(level) for level in levels)
        for weight in self.parameters():
            nn.init.normal_(weight, std=INIT_STD)

    def forward(self, s: Tensor) -> list[Tensor]:
        """Return the signal for every level, first level first; each has the shape of its level's input."""
        signals: list[Tensor] = []
        u = s
        for A_l, B_l in zip(reversed(self.A), reversed(self.B), strict=True):
            u = A_l(u)
            signals.append(B_l(u))
        return signals[::-1]
