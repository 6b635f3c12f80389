"""The feedback path: one layer back per level, from the last to the first (section 3.1, step iii; 4.4 for ConvNets)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.backbones.base import Level

INIT_STD = 0.02
"""Standard deviation of the `random` start, as in the authors' code."""


class Deconvolution(nn.Module):
    """A deconvolution whose kernel is as large as its stride, without bias: `[B, C, H, W]` to `[B, C', H r, W r]`.

    Every cell then becomes a patch of its own, so it is a 1 by 1 convolution to `C' r r` channels that are laid out as
    pixels. Written so, its weight is one matrix: low-rank factors and least squares treat it like a linear layer's.
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.patch = nn.Conv2d(width_in, width_out * stride**2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Every cell to its patch."""
        return F.pixel_shuffle(self.patch(x), self.stride)


def build_feedback_layer(level: Level) -> nn.Module:
    """`A_l`: from the channels (and size) of a level's output back to those of its input; no bias."""
    if level.undo == "deconvolution":
        return Deconvolution(level.width_out, level.width_in, level.stride)
    return nn.Linear(level.width_out, level.width_in, bias=False)


def build_signal_layer(level: Level) -> nn.Module:
    """`B_l`: what the feedback at a level becomes before it is sent in; no bias."""
    if level.undo == "deconvolution":
        return nn.Conv2d(level.width_in, level.width_in, 1, bias=False)
    return nn.Linear(level.width_in, level.width_in, bias=False)


def get_base_weight(layer: nn.Module) -> nn.Parameter:
    """The weight of a feedback layer itself, whether or not low-rank factors have been put on it (see `lite`)."""
    layer = layer.patch if isinstance(layer, Deconvolution) else layer
    weight = getattr(layer, "base_layer", layer).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def compute_effective_weight(layer: nn.Module) -> Tensor:
    """What a feedback layer multiplies by: its own weight, and what low-rank factors on it add."""
    weight: Tensor = get_base_weight(layer)
    layer = layer.patch if isinstance(layer, Deconvolution) else layer
    # A LoRA layer, told by what it can do: importing PEFT takes seconds, for which no other path should wait.
    delta = getattr(layer, "get_delta_weight", None)
    return weight if delta is None else weight + delta("default").reshape(weight.shape)


class FeedbackPath(nn.Module):
    """`u_l = A_l u_{l+1}` from the last level to the first with `u_{L+1} = s`; level l receives `X_td,l = B_l u_l`.

    `A[l]` and `B[l]` count levels from 0. The `random` start draws every weight from a normal of standard
    deviation 0.02, so that each `A_l` shrinks what it passes on; see `least_squares` for a start that does not.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__()
        self.A = nn.ModuleList(build_feedback_layer(level) for level in levels)
        self.B = nn.ModuleList(build_signal_layer(level) for level in levels)
        for weight in self.parameters():
            nn.init.normal_(weight, std=INIT_STD)

    def forward(self, s: Tensor) -> list[Tensor]:
        """The signal for every level, first level first; each has the shape of its level's input."""
        signals: list[Tensor] = []
        u = s
        for A_l, B_l in zip(reversed(self.A), reversed(self.B), strict=True):
            u = A_l(u)
            signals.append(B_l(u))
        return signals[::-1]
