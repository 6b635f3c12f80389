"""Selection and feedback, and the two passes that they connect (section 3.1, steps i to iv)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toast_cli.backbones.base import Backbone, Readout, State, Trace
from toast_cli.backbones.lazy_signal import LazySignal, Signal, SignalT, ValueSignal, scale_signal
from toast_cli.steering.composition import compose_feedback, is_composition_cheaper, is_value_composition_cheaper
from toast_cli.steering.feedback import FeedbackPath
from toast_cli.steering.lite_composition import FrozenProducts, compose_low_rank, has_frozen_products
from toast_cli.steering.selection import FeatureSelection


class BaseSteering(nn.Module):
    """Base class of the connection between the two passes: the steered `levels` and their signals.

    At inference every signal is multiplied by `strength`. If it is 0, no signal is sent and both passes are equal.
    """

    levels: range
    strength: float = 1.0

    def compute_signals(self, first: Readout) -> tuple[Tensor, Tensor, Sequence[Signal]]:
        """Return the similarity map, the selection, and a signal for every steered level, first level first."""
        raise NotImplementedError

    def compute_signals_fast(self, first: Readout) -> Sequence[Signal | LazySignal]:
        """Return only the signals, in the cheapest way. Up to rounding they act like those of `signals`."""
        return self.compute_signals(first)[-1]

    def expand_to_levels(self, signals: Sequence[SignalT], levels: int) -> list[SignalT | None]:
        """Return the signal of each of a backbone's `levels`: `strength` times the steered ones', None for others."""
        sent: list[SignalT | None] = [*signals]
        if self.strength == 0:
            sent = [None] * len(sent)
        elif self.strength != 1:
            sent = [scale_signal(self.strength, signal) for signal in signals]
        return [None] * self.levels.start + sent + [None] * (levels - self.levels.stop)


class Steering(BaseSteering):
    """Everything that TOAST trains except the head: xi, P, and the `A_l`, `B_l` of the feedback path.

    Args:
        backbone: The steered backbone.
        levels: The levels that receive a signal, counted from 0; by default all. If they end before the last level, z
            is taken there (early feedback, section 5). If they start after the first, both passes share the levels
            before (late feedback).
        token_selection: False gives every token its full weight (the ablation of table 7).
    """

    compute_signals_of_evaluation: Callable[[Readout], Sequence[Signal | LazySignal] | None] | None = None
    """Set by `folding.fold_during_evaluation`: it returns None where composing does not pay."""

    def __init__(self, backbone: Backbone, levels: range | None = None, *, token_selection: bool = True) -> None:
        super().__init__()
        self.levels = range(len(backbone.levels)) if levels is None else levels
        self._backbone = backbone
        steered = backbone.levels[self.levels.start : self.levels.stop]
        self.selection = FeatureSelection(steered[-1].width_out, backbone.channel_dim, by_token=token_selection)
        self.feedback = FeedbackPath(steered)
        self._frozen_products = FrozenProducts()

    def compute_signals(self, first: Readout) -> tuple[Tensor, Tensor, Sequence[Signal]]:
        """Select features and feed them back."""
        similarity, selected = self.selection(first)
        return similarity, selected, self.feedback(selected)

    def compute_signals_fast(self, first: Readout) -> Sequence[Signal | LazySignal]:
        """Return the signals, with one composed matrix per level if there are far more tokens than channels.

        Tokens are weighed after the matrices, `m_i (F_l z_i)`: z is not trained, so no gradient flows to it. This keeps
        every `F_l z_i` for the backward pass. The frozen layers of TOAST-Lite are composed once for the whole run (see
        `lite_composition`). With gradient checkpointing, tokens are weighed before, and each level
        computes its own signal, twice.
        """
        if self.compute_signals_of_evaluation is not None and not torch.is_grad_enabled():
            folded = self.compute_signals_of_evaluation(first)
            if folded is not None:
                return folded
        backbone, levels, z = self._backbone, self.levels, first.z
        if not is_composition_cheaper(self.feedback, backbone, levels, z):
            signals: list[Tensor] = self.feedback(self.selection(first)[1])
            return signals
        if has_frozen_products(self.feedback) and not backbone.checkpointing:
            with torch.autocast(z.device.type, enabled=False):
                matrices = compose_low_rank(self.feedback, self._frozen_products)
            return matrices.apply_to_tokens(self.selection(first)[1])
        with torch.autocast(z.device.type, enabled=False):
            P = self.selection.P
            to_values = is_value_composition_cheaper(backbone, levels, z)
            F = [
                F_l[:, 0, 0]
                for F_l in compose_feedback(self.feedback, backbone, levels, P, P.dtype, to_values=to_values)
            ]
        m, z = (
            self.selection.compute_similarity(first).unsqueeze(-1),
            z.to(P.dtype),
        )  # the type of F_l, not of the stored model
        if backbone.checkpointing:
            weighed = m * z
            return [LazySignal(weighed, F_l, to_values) for F_l in F]
        sent = (m * nn.functional.linear(z, F_l) for F_l in F)
        return [ValueSignal(signal) if to_values else signal for signal in sent]


@dataclass
class PassOutputs:
    """The outputs of one or two passes.

    `last` is the readout of the last pass, `first` the one that selection uses, and `plain` the output of the first
    pass, or None if it stops early (early feedback). With one pass, all three are the same object. `similarity`
    (`[B, N]` or `[B, H, W]`, 0 to 1), `selected` and `signals` (one per level, None for levels that are not steered)
    are None without a second pass.
    """

    first: Readout
    last: Readout
    plain: Readout | None
    similarity: Tensor | None = None
    selected: Tensor | None = None
    signals: list[Signal | None] | None = None


def run_one_pass(backbone: Backbone, inputs: Any, trace: Trace | None = None) -> PassOutputs:
    """Run a plain forward pass of the backbone."""
    readout = backbone.leave(backbone.run(backbone.enter(inputs), trace=trace))
    return PassOutputs(readout, readout, readout)


def run_first_pass(
    backbone: Backbone, levels: range, inputs: Any, traces: Sequence[Trace | None] = ()
) -> tuple[State, Readout, Readout | None]:
    """Run the plain pass as far as selection needs it, or to its end if it has a trace of its own.

    Args:
        backbone: The backbone.
        levels: The levels that will be steered.
        inputs: The backbone's inputs.
        traces: Traces of the first and the second pass. The second also receives the levels that both passes share.

    Returns:
        The state before the first steered level, the readout after the last one, and the readout at the end of the
        network, or None if the pass stops before.
    """
    both = [trace for trace in traces if trace is not None]
    own = traces[0] if traces else None
    common = Trace(any(trace.levels for trace in both), frozenset().union(*(trace.attention_of for trace in both)))
    shared = backbone.run(backbone.enter(inputs), last=levels.start, trace=common)
    for trace in both:
        trace.extend_from(common)
    end = backbone.run(shared, first=levels.start, last=levels.stop, trace=own)
    if levels.stop == len(backbone.levels):
        first = backbone.leave(end)
        return shared, first, first
    first = backbone.tap(end)
    if own is None:
        return shared, first, None
    return shared, first, backbone.leave(backbone.run(end, first=levels.stop, trace=own))


def run_two_passes(
    backbone: Backbone,
    steering: BaseSteering,
    inputs: Any,
    first_trace: Trace | None = None,
    last_trace: Trace | None = None,
) -> PassOutputs:
    """Run the first pass, select, feed back, and run the second pass.

    The first pass depends on no trained parameter, so it keeps no graph. Levels before the first steered level are
    shared. With a `first_trace`, even one that records nothing, it runs to its end under early feedback.
    """
    levels = steering.levels
    with torch.no_grad():
        shared, first, plain = run_first_pass(backbone, levels, inputs, (first_trace, last_trace))
    return run_second_pass(backbone, steering, inputs, shared, first, plain, last_trace)


def run_second_pass(
    backbone: Backbone,
    steering: BaseSteering,
    inputs: Any,
    shared: State,
    first: Readout,
    plain: Readout | None,
    trace: Trace | None = None,
) -> PassOutputs:
    """Select, feed back, and run the second pass from what `run_first_pass` returned.

    A kept first pass can be followed by many second passes, with other signals.
    """
    similarity, selected, fed_back = steering.compute_signals(first)
    signals = steering.expand_to_levels(fed_back, len(backbone.levels))
    state = backbone.run(backbone.again(shared, inputs), signals, first=steering.levels.start, trace=trace)
    return PassOutputs(first, backbone.leave(state), plain, similarity, selected, signals)


def compute_steered_features(backbone: Backbone, steering: BaseSteering, inputs: Any) -> Tensor:
    """Return only the pooled features of the second pass, which tuning and inference need.

    They equal `run_two_passes(...).last.pooled` up to rounding. Computations that both passes share are done once,
    signals are computed in the cheapest way, and the last level only computes the pooled features.
    """
    levels = steering.levels
    with torch.no_grad():
        shared = backbone.run(backbone.enter(inputs), last=levels.start)
        shared = backbone.keep(shared, levels.start)
        end = backbone.run(shared, first=levels.start, last=levels.stop)
        first = backbone.leave(end) if levels.stop == len(backbone.levels) else backbone.tap(end)
    return run_steered_pass(backbone, steering, first, backbone.again(shared, inputs))


def run_steered_pass(backbone: Backbone, steering: BaseSteering, first: Readout, state: State) -> Tensor:
    """Return the pooled features of the second pass, from the first readout and the state before the steered levels."""
    levels, last = steering.levels, len(backbone.levels) - 1
    signals = steering.expand_to_levels(steering.compute_signals_fast(first), last + 1)
    state = backbone.run(state, signals, first=levels.start, last=last)
    return backbone.conclude(state, signals[last])
