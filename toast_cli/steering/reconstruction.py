"""The reconstruction loss of pre-tuning: a level's feedback layer learns to invert that level (section 3.2)."""

from __future__ import annotations

from torch import Tensor

from toast_cli.backbones.base import Trace
from toast_cli.steering.steering import Steering


def crop_to_overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Crop two tensors with the same number of dimensions to their overlap.

    A deconvolution reconstructs a few pixels less (or more) than the input of a level whose stride does not divide it.
    Other tensors are returned unchanged.
    """
    both = tuple(slice(min(sides)) for sides in zip(a.shape, b.shape, strict=True))
    return a[both], b[both]


def compute_reconstruction_losses(steering: Steering, trace: Trace, real: Tensor | None = None) -> list[Tensor]:
    """Return `mse(A_l(stopgrad(output_l)), stopgrad(input_l))` for every steered level, first level first.

    Args:
        steering: Only its `A_l` receive gradients.
        trace: The trace of a pass over all levels, recorded with `levels=True`.
        real: Mask `[B, N]`, False on padding, which is excluded; None if there is no padding.
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
