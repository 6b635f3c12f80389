"""Evaluate a model on a split, in one pass over it, and report what could not be read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from toast_cli.attention.maps import AttentionRecorder
from toast_cli.attention.table import AttentionShare
from toast_cli.data.base import BatchLoader
from toast_cli.model.model import Model
from toast_cli.training.distributed.collectives import merge_across_processes, merge_dicts_across_processes
from toast_cli.training.reporter import Reporter
from toast_cli.training.step import LossPartsMeter, TrainingStep
from toast_cli.utils.constants import IGNORE_INDEX


class SamplePredictions:
    """Which class each sample was given, by its place in the split, where the task gives one: `(label, chosen)`."""

    def __init__(self) -> None:
        self.given: dict[int, tuple[int, int]] = {}

    def add(self, chosen: Tensor | None, batch: dict[str, Any]) -> None:
        """Keep a batch's; those that are ignored are left out."""
        if chosen is not None:
            places, labels = batch["index"].tolist(), batch["label"].tolist()
            for place, label, answer in zip(places, labels, chosen.tolist(), strict=True):
                if label != IGNORE_INDEX:
                    self.given[place] = label, answer

    def merge(self, other: SamplePredictions) -> None:
        """Take in another process's."""
        self.given |= other.given


@torch.no_grad()
def evaluate_model(
    model: Model,
    batches: Iterable[dict[str, Any]],
    accelerator: Accelerator,
    *,
    with_attention: bool = False,
    step: TrainingStep | None = None,
    answers: SamplePredictions | None = None,
) -> dict[str, Any]:
    """The metrics over all batches, those of other processes included.

    With masks in the batches and `with_attention`, the attention shares too; with a `step`, the parts of its loss.
    This process's `answers` are kept where they are asked for.
    """
    was_training = model.training
    model.eval()
    share = AttentionShare() if with_attention else None
    recorder = AttentionRecorder(model) if with_attention else None
    objective = model.objective
    meter, parts = (step or objective).meter(), LossPartsMeter()
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
            if answers is not None:
                answers.add(objective.predict_classes(outputs), batch)
    model.train(was_training)
    metrics: dict[str, Any] = {**merge_across_processes(meter).result(), **merge_across_processes(parts).result()}
    if share is not None:
        metrics["attention_share"] = merge_across_processes(share).result()
    return metrics


def report_skipped_samples(reporter: Reporter, **batches: BatchLoader | None) -> dict[str, dict[str, str]]:
    """Say how many samples of every split could not be read and were left out; returns all of them, with the reasons.

    All processes must call it.
    """
    found = {
        part: merge_dicts_across_processes(loader.skipped) for part, loader in batches.items() if loader is not None
    }
    for part, skipped in found.items():
        if skipped:
            named = "; ".join(f"{name} ({why})" for name, why in list(skipped.items())[:3])
            more = f"; and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
            reporter.message(f"{part}: {len(skipped):,} could not be read and were skipped: {named}{more}")
    return {part: skipped for part, skipped in found.items() if skipped}
