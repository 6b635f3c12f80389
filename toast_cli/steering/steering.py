"""Selection and feedback together, and the two passes they connect (section 3.1, steps i to iv)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toast_cli.backbones.base import Backbone, Readout, State, Trace
from toast_cli.backbones.lazy_signal import LazySignal, Signal, SignalT, ValueSignal, scale_signal
from toast_cli.steering.composition import compose_feedback, is_composition_cheaper, is_value_composition_cheaper
from toast_cli.steering.feedback import FeedbackPath
from toast_cli.steering.selection import FeatureSelection


class BaseSteering(nn.Module):
    """What connects the two passes, whatever it is made of: which `levels` are steered, and by which signals.

    Every signal is sent `strength` times as strong, at inference; 0 sends none, and the second pass is the first.
    """

    levels: range
    strength: float = 1.0

    def signals(self, first: Readout) -> tuple[Tensor, Tensor, Sequence[Signal]]:
        """The similarity map, what was selected, and a signal for every steered level, first level first."""
        raise NotImplementedError

    def compute_signals_fast(self, first: Readout) -> Sequence[Signal | LazySignal]:
        """Return the signals alone, in the cheapest way; up to rounding they act like those of `signals`."""
        return self.signals(first)[-1]

    def expand_to_levels(self, signals: Sequence[SignalT], levels: int) -> list[SignalT | None]:
        """What each of a backbone's `levels` receives: `strength` times the steered ones' signals, None elsewhere."""
        sent: list[SignalT | None] = [*signals]
        if self.strength == 0:
            sent = [None] * len(sent)
        elif self.strength != 1:
            sent = [scale_signal(self.strength, signal) for signal in signals]
        return [None] * self.levels.start + sent + [None] * (levels - self.levels.stop)


class Steering(BaseSteering):
    """Everything TOAST trains besides the head: xi, P, and the `A_l`, `B_l` of the feedback path.

    Args:
        backbone: what is steered.
        levels: the levels that receive a signal, counted from 0; left out, all of them. Where they end before the
            last level, z is taken there (early feedback, section 5); where they begin after the first, both passes
            share what comes before (late feedback).
        token_selection: False leaves every token its full weight (the ablation of table 7).
    """

    def __init__(self, backbone: Backbone, levels: range | None = None, *, token_selection: bool = True) -> None:
        super().__init__()
        self.levels = range(len(backbone.levels)) if levels is None else levels
        self._backbone = backbone
        steered = backbone.levels[self.levels.start : self.levels.stop]
        self.selection = FeatureSelection(steered[-1].width_out, backbone.channel_dim, by_token=token_selection)
        self.feedback = FeedbackPath(steered)

    def signals(self, first: Readout) -> tuple[Tensor, Tensor, Sequence[Signal]]:
        """Select, then feed back."""
        similarity, selected = self.selection(first)
        return similarity, selected, self.feedback(selected)

    def compute_signals_fast(self, first: Readout) -> Sequence[Signal | LazySignal]:
        """Return the signals by one composed matrix a level, where tokens far outnumber channels.

        Tokens are weighed behind the matrices, `m_i (F_l z_i)`: z is not trained, so nothing is propagated back to it.
        That keeps every `F_l z_i` for the backward pass; where memory is worth more than time they are weighed before,
        and each level works out its own signal, twice.
        """
        backbone, levels, z = self._backbone, self.levels, first.z
        if not is_composition_cheaper(self.feedback, backbone, levels, z):
            signals: list[Tensor] = self.feedback(self.selection(first)[1])
            return signals
        with torch.autocast(z.device.type, enabled=False):
            P = self.selection.P
            to_values = is_value_composition_cheaper(backbone, levels, z)
            F = [
                F_l[:, 0, 0]
                for F_l in compose_feedback(self.feedback, backbone, levels, P, P.dtype, to_values=to_values)
            ]
        m, z = self.selection.similarity(first).unsqueeze(-1), z.to(P.dtype)  # as F_l, however the model is stored
        if backbone.checkpointing:
            weighed = m * z
            return [LazySignal(weighed, F_l, to_values) for F_l in F]
        sent = (m * nn.functional.linear(z, F_l) for F_l in F)
        return [ValueSignal(signal) if to_values else signal for signal in sent]


@dataclass
class PassOutputs:
    """What came out of one or two passes.

    `last` is the pass whose features count, `first` what selection looks at of the plain one, `plain` what that one
    puts out at its end: None where early feedback has it stop before. Where there is one pass, all are the same object.
    `similarity` (`[B, N]` or `[B, H, W]`, 0 to 1), `selected` and `signals` (one per level, None where it is not
    steered) are None without a second pass.
    """

    first: Readout
    last: Readout
    plain: Readout | None
    similarity: Tensor | None = None
    selected: Tensor | None = None
    signals: list[Signal | None] | None = None


def run_one_pass(backbone: Backbone, inputs: Any, trace: Trace | None = None) -> PassOutputs:
    """A plain forward pass of the backbone."""
    readout = backbone.leave(backbone.run(backbone.enter(inputs), trace=trace))
    return PassOutputs(readout, readout, readout)


def run_first_pass(
    backbone: Backbone, levels: range, inputs: Any, traces: Sequence[Trace | None] = ()
) -> tuple[State, Readout, Readout | None]:
    """The plain pass as far as selection needs it, or to its end where it has a trace of its own.

    Args:
        backbone: what is run.
        levels: those that will be steered.
        inputs: what the backbone takes.
        traces: the first pass's, and the second's, which is given what both passes share.

    Returns:
        The state before the first steered level, what came out after the last, and what came out at the end of the
        network; None if that was not reached.
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
    """Look, select, feed back, look again.

    The first pass depends on nothing that is trained, so it keeps no graph; what comes before the first steered level
    is shared. With a `first_trace`, even one that is to remember nothing, it goes on to its end under early feedback.
    """
    levels = steering.levels
    with torch.no_grad():
        shared, first, plain = run_first_pass(backbone, levels, inputs, (first_trace, last_trace))
    similarity, selected, fed_back = steering.signals(first)
    signals = steering.expand_to_levels(fed_back, len(backbone.levels))
    state = backbone.run(backbone.again(shared, inputs), signals, first=levels.start, trace=last_trace)
    return PassOutputs(first, backbone.leave(state), plain, similarity, selected, signals)


def compute_steered_features(backbone: Backbone, steering: BaseSteering, inputs: Any) -> Tensor:
    """The pooled features of the second pass and nothing else, which is what tuning and inference need.

    Equal to `two_passes(...).last.pooled` but for rounding. What both passes compute alike is computed once, signals
    are sent in the cheapest way, and the last level works for the pooled features alone.
    """
    levels = steering.levels
    with torch.no_grad():
        shared = backbone.run(backbone.enter(inputs), last=levels.start)
        shared = backbone.keep(shared, levels.start)
        end = backbone.run(shared, first=levels.start, last=levels.stop)
        first = backbone.leave(end) if levels.stop == len(backbone.levels) else backbone.tap(end)
    return run_steered_pass(backbone, steering, first, backbone.again(shared, inputs))


def run_steered_pass(backbone: Backbone, steering: BaseSteering, first: Readout, state: State) -> Tensor:
    """The second pass's pooled features, from what selection looks at and the state before the first steered level."""
    levels, last = steering.levels, len(backbone.levels) - 1
    signals = steering.expand_to_levels(steering.compute_signals_fast(first), last + 1)
    state = backbone.run(state, signals, first=levels.start, last=last)
    return backbone.conclude(state, signals[last])
