"""What an epoch of training has counted so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toast_cli.training.distributed.collectives import merge_across_processes
from toast_cli.training.step import LossPartsMeter, StepOutput, TrainingStep


class EpochMetrics:
    """Metrics, the loss's parts, and the mean loss over everything `seen`, of one process or of all together."""

    def __init__(self, step: TrainingStep) -> None:
        self._count = step.model.objective.count
        self.meter = step.meter()
        self.parts = LossPartsMeter()
        self.seen = 0.0
        self.seconds = 0.0
        self._loss = 0.0

    def add(self, stepped: StepOutput, batch: Mapping[str, Any]) -> None:
        """Count this process's part of a batch in."""
        if count := self._count(batch):
            self.meter.add(stepped.outputs.detach(), batch)
            self.parts.add(stepped.parts, count)

    def add_loss(self, mean: float, count: float) -> None:
        """Count in the mean loss over `count` things that all processes had together."""
        self.seen += count
        self._loss += mean * count

    def result(self) -> dict[str, Any]:
        """This process's metrics so far, with the loss of all."""
        return {**self.meter.result(), **self.parts.result(), "loss": self._loss / max(self.seen, 1)}

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as plain values; of all processes together."""
        counted = {"seen": self.seen, "seconds": self.seconds, "loss": self._loss}
        return {
            **counted,
            "meter": merge_across_processes(self.meter).state(),
            "parts": merge_across_processes(self.parts).state(),
        }

    def restore(self, state: Mapping[str, Any], *, first: bool) -> None:
        """Go on counting; what all processes had counted goes to the `first` of them."""
        self.seen, self.seconds, self._loss = state["seen"], state["seconds"], state["loss"]
        if first:
            self.meter.restore(state["meter"])
            self.parts.restore(state["parts"])

    def closing(self) -> dict[str, Any]:
        """The metrics of all processes together."""
        whole = {**merge_across_processes(self.meter).result(), **merge_across_processes(self.parts).result()}
        return {**whole, "loss": self._loss / max(self.seen, 1), "seconds": self.seconds}
