"""The forward part of a training step: the model's outputs and the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.backbones.base import Trace
from toast_cli.model.model import Model
from toast_cli.recipe.schema import PretuningOptions
from toast_cli.steering.reconstruction import compute_reconstruction_losses
from toast_cli.steering.steering import PassOutputs, Steering
from toast_cli.tasks.base import Meter
from toast_cli.utils.errors import UsageError


@dataclass
class StepOutput:
    """The head's outputs, the loss summed over the batch, and named parts of its mean, which are logged."""

    outputs: Tensor
    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class TrainingStep(nn.Module):
    """A tuning step: the task's loss alone (section 3.2)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Any]) -> StepOutput:
        """Return the outputs and the loss of a batch."""
        objective = self.model.objective
        if self.model.training:
            batch = objective.apply_mixup(batch)
            outputs = self.model(objective.inputs(batch))
        else:
            outputs = objective.predict(self.model, batch)
        return StepOutput(outputs, objective.loss(outputs, batch))

    def meter(self) -> Meter:
        """Return the meter of the task's metrics."""
        return self.model.objective.meter()

    def running_meter(self) -> Meter:
        """Return the meter of an epoch in training."""
        return self.model.objective.running_meter()

    def score(self, metrics: Mapping[str, Any]) -> float:
        """Return the score that selects the best epoch; higher is better."""
        return self.model.objective.score(metrics)


class PretuningStep(TrainingStep):
    """A pre-tuning step: the task's loss plus the reconstruction losses of the second pass (section 3.2, appendix A.2).

    Every steered level has an unweighted reconstruction loss: `reconstruction/2` is that of the second level.

    Raises:
        UsageError: the method has no feedback path, or the head reads every level and the target is labels.
    """

    def __init__(self, model: Model, options: PretuningOptions) -> None:
        super().__init__(model)
        if not isinstance(model.adapted.steering, Steering):
            raise UsageError(
                "Only a method with a feedback path can be pre-tuned.",
                what_to_do="Use --method toast.",
                code="method.no-feedback-path",
            )
        if model.objective.reads_levels and options.target == "labels":
            raise UsageError(
                "Pre-tuning on labels uses the backbone's final output, and this task's head reads every level.",
                what_to_do="Pre-tune on images with class labels, or use pretuning.target=first-pass.",
                code="training.unsupported-task",
            )
        self.steering = model.adapted.steering
        self.options = options
        # With early feedback, the first pass would stop before the output that these losses need.
        self.needs_first_pass_output = options.passes == "both" or options.target == "first-pass"

    def forward(self, batch: Mapping[str, Any]) -> StepOutput:
        """Return the outputs and the loss of a batch."""
        objective = self.model.objective
        batch = objective.apply_mixup(batch) if self.model.training else batch
        trace = Trace(levels=True)
        first_trace = Trace() if self.needs_first_pass_output else None
        outputs, passes = self.model.forward_passes(objective.inputs(batch), first_trace, trace)
        losses = torch.stack(compute_reconstruction_losses(self.steering, trace, passes.last.real))
        task, parts = self.task_loss(outputs, passes, batch)
        weighted = self.options.reconstruction * losses.sum() * objective.count(batch)
        by_level = zip(self.steering.levels, losses.detach().cpu(), strict=True)
        named = {f"reconstruction/{level + 1}": loss for level, loss in by_level}
        return StepOutput(outputs, task + weighted, {**named, **parts})

    def task_loss(
        self, outputs: Tensor, passes: PassOutputs, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the task's loss summed over the batch, and named parts of its mean."""
        objective = self.model.objective
        task = objective.loss(outputs, batch)
        if self.options.passes == "both":
            assert passes.plain is not None
            task = (task + objective.loss(self.model.compute_outputs(passes.plain.pooled), batch)) / 2
        return task, {}

    def score(self, metrics: Mapping[str, Any]) -> float:
        """Return the negative total loss."""
        return -(metrics["loss"] + self.options.reconstruction * sum(metrics["reconstruction"].values()))


class DistillationStep(PretuningStep):
    """A pre-tuning step without labels: keep second-pass features close to those of the first pass (not in the paper).

    The parts are the mean feature `distance` and the total `loss`.
    """

    def forward(self, batch: Mapping[str, Any]) -> StepOutput:
        """Return the outputs and the loss of a batch."""
        stepped = super().forward(batch)
        stepped.parts["loss"] = stepped.loss.detach() / max(self.model.objective.count(batch), 1)
        return stepped

    def task_loss(
        self, outputs: Tensor, passes: PassOutputs, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return one minus the cosine similarity of the two passes' features, summed over the batch.

        Padding tokens of texts are left out.
        """
        assert passes.plain is not None
        distances = 1 - F.cosine_similarity(passes.last.pooled, passes.plain.pooled, dim=-1)
        real = passes.last.real
        distance = (distances if real is None or distances.shape != real.shape else distances[real]).mean()
        return distance * self.model.objective.count(batch), {"distance": distance.detach()}

    def meter(self) -> Meter:
        """Return a meter without metrics: the loss parts are the only numbers."""
        return NullMeter()

    running_meter = meter

    def score(self, metrics: Mapping[str, Any]) -> float:
        """Return the negative total loss."""
        return -metrics["loss"]


def freeze_parameters_for_pretuning(model: Model, options: PretuningOptions) -> None:
    """Freeze the head, which is not used, and xi in a pre-tuning without labels.

    The two passes agree best without any signal, which a trained xi could reach by being unlike every token.
    Similarities are clipped at zero (section 3.1), so no later gradient could undo that.
    """
    if options.target == "first-pass":
        model.head.requires_grad_(False)
        if isinstance(model.adapted.steering, Steering):
            model.adapted.steering.selection.xi.requires_grad_(False)


class NullMeter(Meter):
    """A meter without metrics."""

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Ignore the batch."""

    def result(self) -> dict[str, float]:
        """Return no metrics."""
        return {}


class LossPartsMeter:
    """Running means of the named loss parts."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, parts: Mapping[str, Tensor], count: int) -> None:
        """Add a batch, whose parts are means over `count` samples (or tokens)."""
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value) * count
        self._count += count

    def merge(self, other: LossPartsMeter) -> None:
        """Add the sums of another process."""
        for name, total in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + total
        self._count += other._count

    def result(self) -> dict[str, Any]:
        """Return the means; a part named `group/member` is nested under `group`."""
        means: dict[str, Any] = {}
        for name, total in self._sums.items():
            group, _, member = name.rpartition("/")
            (means.setdefault(group, {}) if group else means)[member] = total / max(self._count, 1)
        return means

    def state(self) -> dict[str, Any]:
        """Return the sums and the count, for `restore`."""
        return {"sums": dict(self._sums), "count": self._count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state()`."""
        self._sums = dict(state["sums"])
        self._count = state["count"]
