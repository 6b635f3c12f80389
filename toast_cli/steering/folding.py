"""Folding: at inference, one matrix replaces all layers from z to a level (not in the paper; it follows from 3.1).

After the tokens are weighed, only linear maps follow (see `composition`), so level l only needs
`F_l = W_V,l B_l A_l ... A_L P`. In a network of stages, earlier levels have fewer channels and more cells than z. If it
is cheaper, the feedback `u_k` of a later level k is computed on the way, and level l starts there:
`F_l = W_V,l B_l A_l ... A_(k-1)`.

The two passes cannot be merged into one: the signal of a level depends on z, the output of a whole pass over the same
input, and on the cosine in m, which is not linear. LoRA's factors are constants and can be merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toast_cli.backbones.base import Backbone, Level, Readout
from toast_cli.backbones.lazy_signal import LazySignal, Signal, ValueSignal
from toast_cli.steering.composition import choose_carried_levels, compose_segments, is_sharded
from toast_cli.steering.feedback import Deconvolution
from toast_cli.steering.selection import TokenSelection
from toast_cli.steering.steering import BaseSteering, Steering

MIN_EVALUATED_TOKENS_PER_CHANNEL = 3
"""Tokens per channel above which an evaluation composes its matrices first: composing takes three products of square
matrices a level (`A_l`, `B_l`, `W_V`), and then saves one product of a token with a square matrix."""


class FoldedSteering(BaseSteering):
    """A steering with one matrix per level that replaces P, `A_l`, `B_l` and, if the level has one, `W_V`.

    `F[l]` counts from the first steered level. For maps, it is a deconvolution from the cells of the last level to the
    level's input, whose stride is the product of all strides between. `U` has the matrices to the feedback that is
    computed on the way, by the same count; the matrices of the levels before start there. Products are computed in
    `dtype` and stored in the data type of the steering.

    Args:
        steering: The steering to fold. Its weights, including low-rank factors, are read and not changed.
        backbone: The steered backbone.
        dtype: Data type of the products.
    """

    @torch.no_grad()
    def __init__(self, steering: Steering, backbone: Backbone, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.levels = steering.levels
        selection, feedback = steering.selection, steering.feedback
        self.selection = TokenSelection(len(selection.xi), selection.channel_dim, by_token=selection.by_token)
        self.selection.xi = selection.xi
        carried = choose_carried_levels(backbone, self.levels)
        U, F = compose_segments(feedback, backbone, self.levels, selection.P, dtype, carried)
        self.F = nn.ModuleList(
            _build_folded_layer(F_l, backbone.levels[index]).to(selection.P)
            for index, F_l in zip(self.levels, F, strict=True)
        )
        self.U = nn.ModuleDict(
            {
                str(index - self.levels.start): _build_folded_layer(U_l, backbone.levels[index]).to(selection.P)
                for index, U_l in U.items()
            }
        )
        self._enters_at_values = [backbone.value_width(index) is not None for index in self.levels]

    def compute_signals(self, first: Readout) -> tuple[Tensor, Tensor, Sequence[Signal]]:
        """Return the similarity map, `m_i z_i`, and the signals of the steered levels, first level first."""
        m, weighed = self.selection(first)
        u, sent = weighed, list[Tensor]()
        for place, F_l in reversed(list(enumerate(self.F))):
            if str(place) in self.U:
                u = self.U[str(place)](u)
            sent.insert(0, F_l(u))
        return m, weighed, [ValueSignal(x) if at else x for x, at in zip(sent, self._enters_at_values, strict=True)]

    def compute_signals_fast(self, first: Readout) -> Sequence[Signal | LazySignal]:
        """Return the signals. Those of tokens are computed by their levels, so that only one is in memory."""
        if any(type(F_l) is not nn.Linear for F_l in self.F):
            return super().compute_signals_fast(first)
        weighed = self.selection(first)[1]
        return [
            LazySignal(weighed, F_l.weight, at_values)  # type: ignore[arg-type]
            for F_l, at_values in zip(self.F, self._enters_at_values, strict=True)
        ]


@contextmanager
def fold_during_evaluation(steering: BaseSteering | None, backbone: Backbone, batches: int) -> Iterator[None]:
    """Within the block, compute the signals of evaluation with matrices that are composed once for all batches.

    No weight of the steering may change within the block. Nothing is composed if it would cost more than it saves in
    `batches` batches of the first one's size, or if the weights are sharded across processes. Passes that record
    gradients are computed as outside of the block.
    """
    if not isinstance(steering, Steering) or is_sharded(steering.feedback):
        yield
        return
    folded: FoldedSteering | None = None

    def compute_signals(first: Readout) -> Sequence[Signal | LazySignal] | None:
        nonlocal folded
        z = first.z
        channels = z.shape[steering.selection.channel_dim]
        if folded is None:
            if z.numel() // channels * batches < MIN_EVALUATED_TOKENS_PER_CHANNEL * channels:
                return None
            with torch.autocast(z.device.type, enabled=False):
                folded = FoldedSteering(steering, backbone, steering.selection.P.dtype)
        return folded.compute_signals_fast(first)

    steering.compute_signals_of_evaluation = compute_signals
    try:
        yield
    finally:
        steering.compute_signals_of_evaluation = None


def _build_folded_layer(weight: Tensor, level: Level) -> nn.Module:
    """Build the layer with a composed weight `[C', R, R, D]`."""
    width_out, R, _, width_in = weight.shape
    if level.undo == "deconvolution":
        deconvolution = Deconvolution(width_in, width_out, R)
        deconvolution.patch.weight = nn.Parameter(weight.reshape(-1, width_in, 1, 1))
        return deconvolution
    linear = nn.Linear(width_in, width_out, bias=False)
    linear.weight = nn.Parameter(weight.reshape(width_out, width_in))
    return linear
