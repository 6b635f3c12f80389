"""A backbone with a method on it: one pass or two, and a declared set of trained parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from toast_cli.backbone import Backbone, Trace
from toast_cli.steering.steering import Passes, Steering, one_pass, two_passes


class Adapted(nn.Module):
    """Runs the backbone once, or twice when there is a `steering`, and trains exactly the parameters it was given.

    A backbone of which nothing is trained stays in evaluation mode whatever `train()` says: its stochastic depth and
    dropout would otherwise make the two passes different random networks.
    """

    def __init__(self, backbone: Backbone, trained: Iterable[nn.Parameter], steering: Steering | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.network = backbone.module
        self.steering = steering
        self.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        self.backbone_is_trained = any(weight.requires_grad for weight in self.network.parameters())
        self.train(self.training)

    def train(self, mode: bool = True) -> Adapted:
        """Switch to training mode, but never a frozen backbone."""
        super().train(mode)
        if not self.backbone_is_trained:
            self.network.eval()
        return self

    def forward(self, inputs: Any, first_trace: Trace | None = None, last_trace: Trace | None = None) -> Passes:
        """Run the pass or passes; a single pass fills `first_trace`."""
        if self.steering is not None:
            return two_passes(self.backbone, self.steering, inputs, first_trace, last_trace)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.backbone_is_trained):
            return one_pass(self.backbone, inputs, first_trace)
