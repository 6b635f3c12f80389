"""Evaluation of a model in one pass over a split, and the report of unreadable samples."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from toast_cli.attention.maps import AttentionRecorder
from toast_cli.attention.table import AttentionShare
from toast_cli.data.base import BatchLoader, DataSet, list_label_indices
from toast_cli.data.splits import format_class_names
from toast_cli.model.model import Model
from toast_cli.tasks.base import Objective
from toast_cli.training.distributed.collectives import merge_across_processes, merge_dicts_across_processes
from toast_cli.training.reporter import Reporter
from toast_cli.training.step import LossPartsMeter, TrainingStep
from toast_cli.utils.constants import IGNORE_INDEX


class SamplePredictions:
    """The label and predicted class of every sample, by index in the split; empty if the task predicts no class."""

    def __init__(self) -> None:
        self.given: dict[int, tuple[int, int]] = {}

    def add(self, chosen: Tensor | None, batch: dict[str, Any]) -> None:
        """Add the predictions of a batch, without samples whose label is ignored."""
        if chosen is not None:
            indices, labels = batch["index"].tolist(), batch["label"].tolist()
            for index, label, prediction in zip(indices, labels, chosen.tolist(), strict=True):
                if label != IGNORE_INDEX:
                    self.given[index] = label, prediction

    def merge(self, other: SamplePredictions) -> None:
        """Add the predictions of another process."""
        self.given |= other.given


class RegisteredMetrics:
    """The registered metrics of a task's logits, updated batch by batch. torchmetrics merges them over processes."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self._objective = objective
        self._metrics = {name: make().to(device) for name, make in objective.metrics.items()}

    def add(self, outputs: Tensor, batch: dict[str, Any]) -> None:
        """Add a batch, if the task has a class per sample."""
        if self._metrics and (found := self._objective.get_scores_and_labels(outputs, batch)) is not None:
            for metric in self._metrics.values():
                metric.update(*found)

    def result(self) -> dict[str, float]:
        """Return the value of every metric that a process has updated. This is a collective call."""
        updated = {name: "" for name, metric in self._metrics.items() if metric.update_called}
        return {name: float(self._metrics[name].compute()) for name in merge_dicts_across_processes(updated)}


@torch.no_grad()
def evaluate_model(
    model: Model,
    batches: Iterable[dict[str, Any]],
    accelerator: Accelerator,
    *,
    with_attention: bool = False,
    step: TrainingStep | None = None,
    answers: SamplePredictions | None = None,
    notes: list[str] | None = None,
) -> dict[str, Any]:
    """Return the metrics over all batches of all processes.

    With `with_attention`, batches must have masks, and the result includes the attention shares. With a `step`, it
    includes the parts of its loss. `answers` receives this process's predictions. With `notes`, the objective is
    calibrated on these batches before the metrics are computed, and `notes` receives what it says of that.
    """
    was_training = model.training
    model.eval()
    share = AttentionShare() if with_attention else None
    recorder = AttentionRecorder(model) if with_attention else None
    objective = model.objective
    meter, parts = (step or objective).meter(), LossPartsMeter()
    registered = RegisteredMetrics(objective, accelerator.device)
    for batch in batches:
        batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        with accelerator.autocast():
            if recorder is not None and share is not None:
                recorded = recorder.record(objective.inputs(batch))
                if objective.count(batch):
                    share.add(recorded, batch["mask"])
                outputs = recorded.logits
            elif step is not None:
                stepped = step(batch)
                outputs = stepped.outputs
                parts.add(stepped.parts, objective.count(batch))
            else:
                outputs = objective.predict(model, batch)
        if objective.count(batch):
            meter.add(outputs, batch)
            registered.add(outputs, batch)
            if answers is not None:
                answers.add(objective.predict_classes(outputs), batch)
    model.train(was_training)
    meter = merge_across_processes(meter)
    if notes is not None:
        notes += objective.calibrate(meter)
    metrics: dict[str, Any] = {**meter.result(), **merge_across_processes(parts).result()}
    metrics = registered.result() | metrics  # those of the task keep their meaning whatever a plugin is called
    if share is not None:
        metrics["attention_share"] = merge_across_processes(share).result()
    return metrics


def report_skipped_samples(
    reporter: Reporter, data: DataSet, **batches: BatchLoader | None
) -> dict[str, dict[str, str]]:
    """Report how many samples of each split could not be read, and return them with the reasons by split and name.

    Name the classes of which no sample could be read.

    This is a collective call: all processes must make it.
    """
    skipped_by_split = {
        part: merge_dicts_across_processes(loader.skipped) for part, loader in batches.items() if loader is not None
    }
    for part, skipped in skipped_by_split.items():
        if skipped:
            named = "; ".join(f"{name} ({why})" for name, why in list(skipped.items())[:3])
            more = f"; and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
            reporter.report_message(f"{part}: {len(skipped):,} could not be read and were skipped: {named}{more}")
        report_unreadable_classes(reporter, data, part, skipped)
    return {part: skipped for part, skipped in skipped_by_split.items() if skipped}


def report_unreadable_classes(reporter: Reporter, data: DataSet, part: str, skipped: Collection[str]) -> None:
    """Report the classes of a split all of whose samples are among those `skipped`, by name."""
    split: Any = data.splits[part]
    if not skipped or not hasattr(split, "names"):  # the labels of a stream are unknown
        return
    pairs = [(name, list_label_indices(label)) for name, label in zip(split.names, split.labels, strict=True)]
    readable = {label for name, labels in pairs if name not in skipped for label in labels}
    lost = [data.classes[label] for label in sorted({label for _, labels in pairs for label in labels} - readable)]
    if lost:
        effect = "never learned" if part == "train" else "not measured"
        names = format_class_names(lost, target=data.target)
        reporter.report_message(f"Warning: {part}: no image of {names} could be read: {effect}.")
