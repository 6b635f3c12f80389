"""The reconstruction loss of pre-tuning: a level's feedback layer learns to undo that level (section 3.2)."""

from __future__ import annotations

from torch import Tensor

from toast_cli.backbones.base import Trace
from toast_cli.steering.steering import Steering

RECONSTRUCTION_WEIGHT = 0.03
"""Weight of the sum over levels beside the task loss (appendix A.2)."""


def crop_to_overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """What two tensors of as many dimensions both cover.

    A deconvolution rebuilds a few pixels less (or more) than the input of a level whose stride does not divide it;
    for anything else both come back whole.
    """
    both = tuple(slice(min(sides)) for sides in zip(a.shape, b.shape, strict=True))
    return a[both], b[both]


def compute_reconstruction_losses(steering: Steering, trace: Trace, real: Tensor | None = None) -> list[Tensor]:
    """`mse(A_l(stopgrad(output_l)), stopgrad(input_l))` for every steered level, first level first.

    Args:
        steering: its `A_l` alone receive gradients.
        trace: a pass over all levels, run with `levels=True`.
        real: `[B, N]`, False on padding, which then does not count; None where there is none.
    """
    losses = []
    steered = slice(steering.levels.start, steering.levels.stop)
    for A_l, output, level_input in zip(
        steering.feedback.A, trace.outputs[steered], trace.inputs[steered], strict=True
    ):
        rebuilt, target = crop_to_overlap(A_l(output.detach()), level_input.detach())
        squared = (rebuilt - target) ** 2
        losses.append(squared.mean() if real is None else squared[real].mean())
    return losses
