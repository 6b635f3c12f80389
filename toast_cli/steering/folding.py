"""Folding: at inference, everything between z and a level is one matrix (not in the paper; it follows from 3.1).

What selection weighs goes through linear maps alone: `X_td,l = B_l A_l A_{l+1} ... A_L P (m z)`, and where the signal
enters at the values, `W_V X_td,l` is what arrives. So level l needs `F_l = W_V,l B_l A_l ... A_L P` and no more.

The two passes themselves cannot be merged into one: what a level receives depends on z, the end of a whole pass over
the very same input, and on the cosine in m, which is not linear. LoRA's factors are constants and merge; this is none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from toast_cli.backbone import Backbone, Level, Readout, Signal, Values
from toast_cli.steering.feedback import Deconvolution, effective_weight
from toast_cli.steering.selection import Weighing
from toast_cli.steering.steering import Steering, Steers


class FoldedSteering(Steers):
    """A steering whose P, `A_l`, `B_l` and, where a level has one, `W_V` have become one matrix per level.

    `F[l]` counts from the first steered level. Over maps it is a deconvolution from the last level's cells to the
    level's input, its stride all the strides between. Products are taken in float64 and kept in the steering's type.

    Args:
        steering: what is folded; its weights are read, low-rank factors included, and left as they are.
        backbone: what it steers.
    """

    @torch.no_grad()
    def __init__(self, steering: Steering, backbone: Backbone) -> None:
        super().__init__()
        self.levels = steering.levels
        selection, feedback = steering.selection, steering.feedback
        self.selection = Weighing(len(selection.xi), selection.channel_dim, by_token=selection.by_token)
        self.selection.xi = selection.xi
        self._enters_at_values: list[bool] = []
        folded: list[nn.Module] = []
        so_far = selection.P.double()[:, None, None, :]
        for index, A_l, B_l in reversed(list(zip(self.levels, feedback.A, feedback.B, strict=True))):
            level, W_V = backbone.levels[index], backbone.value_weight(index)
            so_far = _after(_patches(A_l, level.width_in), so_far)
            F_l = _after(_patches(B_l, level.width_in), so_far)
            if W_V is not None:
                F_l = _after(W_V.double()[:, None, None, :], F_l)
            folded.append(_layer(F_l, level).to(selection.P))
            self._enters_at_values.append(W_V is not None)
        self.F = nn.ModuleList(reversed(folded))
        self._enters_at_values.reverse()

    def signals(self, first: Readout) -> tuple[Tensor, Tensor, Sequence[Signal]]:
        """The similarity map, `m_i z_i`, and what every steered level receives, first level first."""
        m, weighed = self.selection(first)
        sent = [F_l(weighed) for F_l in self.F]
        return m, weighed, [Values(x) if at else x for x, at in zip(sent, self._enters_at_values, strict=True)]


def _patches(layer: nn.Module, width_out: int) -> Tensor:
    """A layer's weight `[C', r, r, C]`: what one cell of C channels becomes; r is 1 but for deconvolutions."""
    r = layer.stride if isinstance(layer, Deconvolution) else 1
    return effective_weight(layer).double().reshape(width_out, r, r, -1)


def _after(outer: Tensor, inner: Tensor) -> Tensor:
    """`[C', r, r, C]` after `[C, R, R, D]`: every pixel of a patch becomes a patch, `[C', R r, R r, D]`."""
    product = torch.einsum("oijc,cIJd->oIiJjd", outer, inner)
    return product.flatten(1, 2).flatten(2, 3)


def _layer(weight: Tensor, level: Level) -> nn.Module:
    """The layer that a composed weight `[C', R, R, D]` is."""
    width_out, R, _, width_in = weight.shape
    if level.undo == "deconvolution":
        deconvolution = Deconvolution(width_in, width_out, R)
        deconvolution.patch.weight = nn.Parameter(weight.reshape(-1, width_in, 1, 1))
        return deconvolution
    linear = nn.Linear(width_in, width_out, bias=False)
    linear.weight = nn.Parameter(weight.reshape(width_out, width_in))
    return linear
