"""Running metrics of a training epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from toast_cli.training.distributed.collectives import merge_across_processes
from toast_cli.training.step import LossPartsMeter, StepOutput, TrainingStep
from toast_cli.utils.constants import NOTHING_TO_MEASURE
from toast_cli.utils.errors import ToastError


class EpochMetrics:
    """Running metrics, loss parts and mean loss of an epoch.

    Metrics and loss parts are those of this process until `closing` merges them. The loss is over all processes, and
    `seen` is the weight of the samples (or tokens) in it: their count, if all weights are 1.
    """

    def __init__(self, step: TrainingStep) -> None:
        self._count = step.model.objective.count
        self.meter = step.meter()
        self.parts = LossPartsMeter()
        self.seen = 0.0
        self.seconds = 0.0
        self._loss = 0.0

    def add(self, stepped: StepOutput, batch: Mapping[str, Any]) -> None:
        """Add this process's share of a batch."""
        if count := self._count(batch):
            self.meter.add(stepped.outputs.detach(), batch)
            self.parts.add(stepped.parts, count)

    def add_loss(self, mean: float, weight: float) -> None:
        """Add the mean loss over samples (or tokens) of all processes with this total weight."""
        self.seen += weight
        self._loss += mean * weight

    def result(self) -> dict[str, Any]:
        """Return this process's metrics so far, with the loss of all processes; only the loss without any sample."""
        try:
            metrics = self.meter.result()
        except ToastError as error:
            if error.code != NOTHING_TO_MEASURE:
                raise
            metrics = {}
        return {**metrics, **self.parts.result(), "loss": self._loss / (self.seen or 1)}

    def state(self) -> dict[str, Any]:
        """Return the state of all processes for `restore`, as plain values."""
        totals = {"seen": self.seen, "seconds": self.seconds, "loss": self._loss}
        return {
            **totals,
            "meter": merge_across_processes(self.meter).state(),
            "parts": merge_across_processes(self.parts).state(),
        }

    def restore(self, state: Mapping[str, Any], *, first: bool) -> None:
        """Restore a state of `state()`. The merged counts go to the `first` process alone."""
        self.seen, self.seconds, self._loss = state["seen"], state["seconds"], state["loss"]
        if first:
            self.meter.restore(state["meter"])
            self.parts.restore(state["parts"])

    def compute_global_metrics(self) -> dict[str, Any]:
        """Return the metrics of all processes, at the end of the epoch."""
        merged = {**merge_across_processes(self.meter).result(), **merge_across_processes(self.parts).result()}
        return {**merged, "loss": self._loss / (self.seen or 1), "seconds": self.seconds}


class Throughput:
    """The samples per second of training, between two measurements."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin to measure, for example after a validation, whose time does not count."""
        self._samples, self._since = 0.0, time.perf_counter()

    def add(self, samples: float) -> None:
        """Add the samples of a step."""
        self._samples += samples

    def measure(self) -> float:
        """Return the samples per second since the last measurement, and begin the next one."""
        rate = self._samples / max(time.perf_counter() - self._since, 1e-9)
        self.restart()
        return rate
