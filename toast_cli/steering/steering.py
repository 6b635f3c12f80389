"""Selection and feedback together, and the two passes they connect (section 3.1, steps i to iv)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toast_cli.backbone import Backbone, Readout, Signal, State, Trace
from toast_cli.steering.feedback import FeedbackPath
from toast_cli.steering.selection import Selection


class Steers(nn.Module):
    """What connects the two passes, whatever it is made of: which `levels` are steered, and by which signals."""

    levels: range

    def signals(self, first: Readout) -> tuple[Tensor, Tensor, Sequence[Signal]]:
        """The similarity map, what was selected, and a signal for every steered level, first level first."""
        raise NotImplementedError


class Steering(Steers):
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
        steered = backbone.levels[self.levels.start : self.levels.stop]
        self.selection = Selection(steered[-1].width_out, backbone.channel_dim, by_token=token_selection)
        self.feedback = FeedbackPath(steered)

    def signals(self, first: Readout) -> tuple[Tensor, Tensor, Sequence[Signal]]:
        """Select, then feed back."""
        similarity, selected = self.selection(first)
        return similarity, selected, self.feedback(selected)


@dataclass
class Passes:
    """What came out of one or two passes.

    `last` is the pass whose features count, `first` the plain one (the same object where there is only one).
    `similarity` (`[B, N]` or `[B, H, W]`, 0 to 1), `selected` and `signals` (one per level, None where it is not
    steered) are None without a second pass.
    """

    first: Readout
    last: Readout
    similarity: Tensor | None = None
    selected: Tensor | None = None
    signals: list[Signal | None] | None = None


def one_pass(backbone: Backbone, inputs: Any, trace: Trace | None = None) -> Passes:
    """A plain forward pass of the backbone."""
    readout = backbone.leave(backbone.run(backbone.enter(inputs), trace=trace))
    return Passes(readout, readout)


def first_pass(
    backbone: Backbone, levels: range, inputs: Any, traces: Sequence[Trace | None] = ()
) -> tuple[State, Readout]:
    """The plain pass as far as selection needs it.

    Args:
        backbone: what is run.
        levels: those that will be steered.
        inputs: what the backbone takes.
        traces: the first pass's, and the second's, which is given what both passes share.

    Returns:
        The state before the first steered level, and what came out after the last.
    """
    both = [trace for trace in traces if trace is not None]
    own = traces[0] if traces else None
    common = Trace(any(trace.levels for trace in both), frozenset().union(*(trace.attention_of for trace in both)))
    shared = backbone.run(backbone.enter(inputs), last=levels.start, trace=common)
    for trace in both:
        trace.take(common)
    end = backbone.run(shared, first=levels.start, last=levels.stop, trace=own)
    if levels.stop == len(backbone.levels):
        return shared, backbone.leave(end)
    if own is not None:
        backbone.run(end, first=levels.stop, trace=own)  # for the picture alone
    return shared, backbone.tap(end)


def two_passes(
    backbone: Backbone,
    steering: Steers,
    inputs: Any,
    first_trace: Trace | None = None,
    last_trace: Trace | None = None,
) -> Passes:
    """Look, select, feed back, look again.

    The first pass depends on nothing that is trained, so it keeps no graph; what comes before the first steered level
    is shared.
    """
    levels = steering.levels
    with torch.no_grad():
        shared, first = first_pass(backbone, levels, inputs, (first_trace, last_trace))
    similarity, selected, fed_back = steering.signals(first)
    signals = [None] * levels.start + [*fed_back] + [None] * (len(backbone.levels) - levels.stop)
    state = backbone.run(backbone.again(shared, inputs), signals, first=levels.start, trace=last_trace)
    return Passes(first, backbone.leave(state), similarity, selected, signals)
