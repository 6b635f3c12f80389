"""One training step's forward half: what goes through the model, and the loss it comes out with."""

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
    """Outputs of the head, the loss summed over the batch, and named parts of its mean, logged beside it."""

    outputs: Tensor
    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class TrainingStep(nn.Module):
    """Tuning: the task's loss and nothing else (section 3.2)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Any]) -> StepOutput:
        """One batch."""
        objective = self.model.objective
        if self.model.training:
            batch = objective.apply_mixup(batch)
            outputs = self.model(objective.inputs(batch))
        else:
            outputs = objective.predict(self.model, batch)
        return StepOutput(outputs, objective.loss(outputs, batch))

    def meter(self) -> Meter:
        """What counts metrics beside the loss and its parts."""
        return self.model.objective.meter()

    def score(self, metrics: Mapping[str, Any]) -> float:
        """What decides which epoch is kept: higher is better."""
        return self.model.objective.score(metrics)


class PretuningStep(TrainingStep):
    """Pre-tuning: the task's loss plus the reconstruction losses of the second pass (section 3.2, appendix A.2).

    `reconstruction/2` among the parts is that of the backbone's second level, unweighted; every steered level has one.

    Raises:
        UsageError: the method has no feedback path.
    """

    def __init__(self, model: Model, options: PretuningOptions) -> None:
        super().__init__(model)
        if not isinstance(model.adapted.steering, Steering):
            raise UsageError(
                "Only a feedback path can be pre-tuned.",
                what_to_do="Use --method toast.",
                code="training.no-feedback-path",
            )
        if model.objective.reads_levels and options.target == "labels":
            raise UsageError(
                "Pre-tuning learns from what the backbone puts out at its end, and this task's head reads every level.",
                what_to_do="Pre-tune on labelled images, or with pretuning.target=first-pass.",
                code="training.unsupported-task",
            )
        self.steering = model.adapted.steering
        self.options = options
        # Early feedback has the first pass stop before it puts out what a loss could be taken of.
        self.needs_first_pass_output = options.passes == "both" or options.target == "first-pass"

    def forward(self, batch: Mapping[str, Any]) -> StepOutput:
        """One batch."""
        objective = self.model.objective
        batch = objective.apply_mixup(batch) if self.model.training else batch
        trace = Trace(levels=True)
        to_its_end = Trace() if self.needs_first_pass_output else None
        outputs, passes = self.model.forward_passes(objective.inputs(batch), to_its_end, trace)
        losses = torch.stack(compute_reconstruction_losses(self.steering, trace, passes.last.real))
        task, parts = self.task_loss(outputs, passes, batch)
        weighted = self.options.reconstruction * losses.sum() * objective.count(batch)
        by_level = zip(self.steering.levels, losses.detach().cpu(), strict=True)
        named = {f"reconstruction/{level + 1}": loss for level, loss in by_level}
        return StepOutput(outputs, task + weighted, {**named, **parts})

    def task_loss(
        self, outputs: Tensor, passes: PassOutputs, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's loss summed over the batch, and parts of its mean."""
        objective = self.model.objective
        task = objective.loss(outputs, batch)
        if self.options.passes == "both":
            assert passes.plain is not None
            task = (task + objective.loss(self.model.outputs(passes.plain.pooled), batch)) / 2
        return task, {}

    def score(self, metrics: Mapping[str, Any]) -> float:
        """The lower the whole loss, the better."""
        return -(metrics["loss"] + self.options.reconstruction * sum(metrics["reconstruction"].values()))


class DistillationStep(PretuningStep):
    """Pre-tuning without labels: second-pass features are to stay those of the first pass (ours, not the paper's).

    The parts have the mean `distance` of the features and the whole `loss`.
    """

    def forward(self, batch: Mapping[str, Any]) -> StepOutput:
        """One batch."""
        stepped = super().forward(batch)
        stepped.parts["loss"] = stepped.loss.detach() / max(self.model.objective.count(batch), 1)
        return stepped

    def task_loss(
        self, outputs: Tensor, passes: PassOutputs, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One minus the cosine of the two passes' features: compared in direction, as selection compares them.

        Of texts, padding does not count.
        """
        assert passes.plain is not None
        distances = 1 - F.cosine_similarity(passes.last.pooled, passes.plain.pooled, dim=-1)
        real = passes.last.real
        distance = (distances if real is None or distances.shape != real.shape else distances[real]).mean()
        return distance * self.model.objective.count(batch), {"distance": distance.detach()}

    def meter(self) -> Meter:
        """Only the parts say anything here."""
        return NullMeter()

    def score(self, metrics: Mapping[str, Any]) -> float:
        """The lower the whole loss, the better."""
        return -metrics["loss"]


def freeze_parameters_for_pretuning(model: Model, options: PretuningOptions) -> None:
    """Freeze what a pre-tuning without labels cannot teach anything: the head, which has no part in it, and xi.

    The two passes agree best where nothing is sent, and xi could come to that by being unlike every token. Similarities
    are cut off at zero (section 3.1), so no later gradient would bring it back.
    """
    if options.target == "first-pass":
        model.head.requires_grad_(False)
        if isinstance(model.adapted.steering, Steering):
            model.adapted.steering.selection.xi.requires_grad_(False)


class NullMeter(Meter):
    """Counts nothing."""

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Nothing to count."""

    def result(self) -> dict[str, float]:
        """No numbers."""
        return {}


class LossPartsMeter:
    """Means of a step's named parts over many batches."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, parts: Mapping[str, Tensor], count: int) -> None:
        """Count one batch in; a part is a mean over `count` things."""
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value) * count
        self._count += count

    def merge(self, other: LossPartsMeter) -> None:
        """Count in what another process counted."""
        for name, total in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + total
        self._count += other._count

    def result(self) -> dict[str, Any]:
        """The means; that of a part `group/member` lies under its group."""
        means: dict[str, Any] = {}
        for name, total in self._sums.items():
            group, _, member = name.rpartition("/")
            (means.setdefault(group, {}) if group else means)[member] = total / max(self._count, 1)
        return means

    def state(self) -> dict[str, Any]:
        """The sums and the count."""
        return {"sums": dict(self._sums), "count": self._count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from them."""
        self._sums = dict(state["sums"])
        self._count = state["count"]
