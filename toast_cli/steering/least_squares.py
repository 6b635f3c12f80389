"""The least-squares start of the feedback path: the closed-form minimum of the reconstruction loss.

This is not in the paper. The paper pre-tunes the feedback path with gradients so that a level's `A_l` reconstructs the
level's input from its output (section 3.2). For fixed data that is ridge regression, solved here from the frozen
backbone's own activations, without labels and gradients. A deconvolution maps each cell to a patch of its own, so its
regression is from output cells to input patches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.backbones.base import Backbone, Level, Trace
from toast_cli.steering.feedback import get_base_weight
from toast_cli.steering.steering import Steering, run_first_pass
from toast_cli.utils.errors import ToastError
from toast_cli.utils.tensor_fingerprints import copy_tensor

RIDGE = 1e-3
"""lambda, relative to the mean squared activation of the level's output."""


def _flatten_tokens(tensor: Tensor, channel_dim: int, real: Tensor | None) -> Tensor:
    """Return all real tokens (or map cells) as rows `[n, channels]`, in float64 (on the CPU if the device has none)."""
    rows = tensor.movedim(channel_dim, -1)
    rows = rows[real] if real is not None else rows.flatten(0, -2)
    return (rows.cpu() if rows.device.type == "mps" else rows).double()


def _extract_patches(level_input: Tensor, output: Tensor, level: Level) -> Tensor:
    """Return the patch of a level's input `[B, C, H, W]` under every output cell: `[B, C stride stride, H', W']`."""
    size = [cells * level.stride for cells in output.shape[-2:]]
    missing = [target - side for target, side in zip(size, level_input.shape[-2:], strict=True)]
    padded = F.pad(level_input, (0, missing[1], 0, missing[0]))  # crops if the stride does not divide the input
    return F.pixel_unshuffle(padded, level.stride)


class _Moments:
    """Sums over the tokens of one level: `G = sum o o^T` and `R = sum o h^T`, output o against input (or patch) h."""

    def __init__(self) -> None:
        self.G: Tensor | float = 0.0
        self.R: Tensor | float = 0.0

    def update(self, o: Tensor, h: Tensor) -> None:
        self.G = self.G + o.T @ o
        self.R = self.R + o.T @ h

    def solve(self) -> Tensor:
        """Return `A_l` from `A_l^T = (G + lambda I)^-1 R`: one row per channel of h, one column per channel of o."""
        assert isinstance(self.G, Tensor) and isinstance(self.R, Tensor)
        ridge = RIDGE * self.G.diagonal().mean()
        A_l: Tensor = torch.linalg.solve(self.G + ridge * torch.eye(len(self.G)).to(self.G), self.R).T
        return A_l


@torch.no_grad()
def initialize_least_squares(steering: Steering, backbone: Backbone, batches: Iterable[Any]) -> None:
    """Set A, B, P and xi from one plain pass of the backbone over `batches` of inputs. No labels are needed.

    `A_l` is the ridge solution that reconstructs level l's input from its output. `B_l = 0`, so tuning starts exactly
    at the plain backbone. `P = I`. xi is the mean direction of the normalized tokens of the first pass.

    Raises:
        ToastError: There is no input, or an activation is not finite.
    """
    steered = slice(steering.levels.start, steering.levels.stop)
    moments = [_Moments() for _ in steering.levels]
    directions: Tensor | float = 0.0
    for inputs in batches:
        trace = Trace(levels=True)
        _, first, _ = run_first_pass(backbone, steering.levels, inputs, (trace,))
        recorded = (backbone.levels[steered], trace.inputs[steered], trace.outputs[steered])
        for moment, level, h, o in zip(moments, *recorded, strict=True):
            if level.undo == "deconvolution":
                h = _extract_patches(h, o, level)
            moment.update(
                _flatten_tokens(o, backbone.channel_dim, first.real),
                _flatten_tokens(h, backbone.channel_dim, first.real),
            )
        directions = directions + F.normalize(
            _flatten_tokens(first.compared, backbone.channel_dim, first.real), dim=-1
        ).sum(0)
    if not isinstance(directions, Tensor):
        raise ToastError(
            "The least-squares start has no input.",
            what_to_do="Give it at least one training image.",
            code="method.no-start-images",
        )
    copy_tensor(steering.selection.xi, F.normalize(directions, dim=0))
    copy_tensor(steering.selection.P, torch.eye(len(directions)))
    for index, (moment, A_l, B_l) in enumerate(zip(moments, steering.feedback.A, steering.feedback.B, strict=True)):
        solution = moment.solve()
        if not solution.isfinite().all():
            raise ToastError(
                f"The least-squares start is not finite at level {index + 1}.",
                "The backbone's activations overflow on these images.",
                "Use precision=fp32 or method.start=random.",
                code="method.start-not-finite",
            )
        copy_tensor(get_base_weight(A_l), solution.to(get_base_weight(A_l).dtype).reshape(get_base_weight(A_l).shape))
        nn.init.zeros_(get_base_weight(B_l))
