"""A backbone adapted by a method: one or two passes, and a declared set of trained parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toast_cli.backbones.base import Backbone, Trace
from toast_cli.steering.steering import (
    BaseSteering,
    PassOutputs,
    compute_steered_features,
    run_one_pass,
    run_two_passes,
)


class AdaptedModel(nn.Module):
    """A backbone that runs once, or twice with a `steering`, and trains exactly the given parameters.

    The backbone stays in evaluation mode whatever `train()` sets: stochastic depth and dropout would otherwise turn the
    two passes into different random networks. Only its `active` parts, trained or added by a method, follow `train()`.
    Batch norms never do: their running statistics are no trained parameters, and no adapter would hold them.

    Trained parameters are kept in float32 whatever the data type of the backbone: in half precision most steps are
    smaller than the spacing of numbers, and AdamW's second moment underflows. Frozen parameters keep their data type.

    `notes` are sentences for the user on what the method chose.
    """

    def __init__(
        self,
        backbone: Backbone,
        trained: Iterable[nn.Parameter],
        steering: BaseSteering | None = None,
        active: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.network = backbone.module
        self.steering = steering
        self.notes: tuple[str, ...] = ()
        self._active = tuple(active)
        self.requires_grad_(False)
        for parameter in trained:
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> AdaptedModel:
        """Set training mode for the method and the active parts of the backbone."""
        super().train(mode)
        self.network.eval()
        for part in self._active:
            part.train(mode)
        for layer in self.network.modules():
            if getattr(layer, "running_var", None) is not None:
                layer.eval()
        return self

    def forward(self, inputs: Any, first_trace: Trace | None = None, last_trace: Trace | None = None) -> PassOutputs:
        """Run the pass or passes. A single pass fills `first_trace`."""
        if self.steering is not None:
            return run_two_passes(self.backbone, self.steering, inputs, first_trace, last_trace)
        changes = any(weight.requires_grad for weight in self.network.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and changes):
            return run_one_pass(self.backbone, inputs, first_trace)

    def features(self, inputs: Any) -> Tensor:
        """Return the pooled features of the last pass only, in the cheapest way."""
        if self.steering is not None:
            return compute_steered_features(self.backbone, self.steering, inputs)
        return self(inputs).last.pooled
