"""The reconstruction loss of pre-tuning: a level's feedback layer learns to undo that level (section 3.2)."""

from __future__ import annotations

from torch import Tensor

from toast_cli.backbone import Trace
from toast_cli.steering.feedback import FeedbackPath

WEIGHT = 0.03
"""Weight of the sum over levels beside the task loss (appendix A.2)."""


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """What two tensors of as many dimensions both cover.

    A deconvolution rebuilds a few pixels less (or more) than the input of a level whose stride does not divide it;
    for anything else both come back whole.
    """
    both = tuple(slice(min(sides)) for sides in zip(a.shape, b.shape, strict=True))
    return a[both], b[both]


def reconstruction_losses(feedback: FeedbackPath, trace: Trace, real: Tensor | None = None) -> list[Tensor]:
    """`mse(A_l(stopgrad(output_l)), stopgrad(input_l))` for every level, first level first.

    Args:
        feedback: the feedback path; only its `A_l` receive gradients.
        trace: the second pass, run with `levels=True`.
        real: `[B, N]`, False on padding, which then does not count; None where there is none.
    """
    losses = []
    for A_l, output, level_input in zip(feedback.A, trace.outputs, trace.inputs, strict=True):
        rebuilt, target = overlap(A_l(output.detach()), level_input.detach())
        squared = (rebuilt - target) ** 2
        losses.append(squared.mean() if real is None else squared[real].mean())
    return losses
