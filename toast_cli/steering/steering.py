"""Selection and feedback together, and the two passes they connect (section 3.1, steps i to iv)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toast_cli.backbone import Backbone, Readout, Trace
from toast_cli.steering.feedback import FeedbackPath
from toast_cli.steering.selection import Selection


class Steering(nn.Module):
    """Everything TOAST trains besides the head: xi, P, and the `A_l`, `B_l` of the feedback path."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.selection = Selection(backbone.width, backbone.channel_dim)
        self.feedback = FeedbackPath(backbone.levels)


@dataclass
class Passes:
    """What came out of one or two passes.

    `last` is the pass whose features count, `first` the plain one (the same object where there is only one).
    `similarity` (`[B, N]` or `[B, H, W]`, 0 to 1), `selected` and `signals` are None without a second pass.
    """

    first: Readout
    last: Readout
    similarity: Tensor | None = None
    selected: Tensor | None = None
    signals: list[Tensor] | None = None


def one_pass(backbone: Backbone, inputs: Any, trace: Trace | None = None) -> Passes:
    """A plain forward pass of the backbone."""
    readout = backbone.leave(backbone.run(backbone.enter(inputs), trace=trace))
    return Passes(readout, readout)


def two_passes(
    backbone: Backbone,
    steering: Steering,
    inputs: Any,
    first_trace: Trace | None = None,
    last_trace: Trace | None = None,
) -> Passes:
    """Look, select, feed back, look again.

    The first pass depends on nothing that is trained, so it keeps no graph; embedding the input is shared.
    """
    with torch.no_grad():
        entered = backbone.enter(inputs)
        first = backbone.leave(backbone.run(entered, trace=first_trace))
    similarity, selected = steering.selection(first)
    signals = steering.feedback(selected)
    last = backbone.leave(backbone.run(backbone.again(entered, inputs), signals, trace=last_trace))
    return Passes(first, last, similarity, selected, signals)
