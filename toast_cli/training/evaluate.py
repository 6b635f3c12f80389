"""Evaluation of a model in one pass over a split, and the report of unreadable samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from math import isnan
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from toast_cli.attention.maps import AttentionRecorder
from toast_cli.attention.table import AttentionShare
from toast_cli.data.base import BatchLoader, DataSet, Split, list_label_indices
from toast_cli.data.splits import format_class_names
from toast_cli.model.mirror_average import average_with_mirror
from toast_cli.model.model import Model
from toast_cli.steering.folding import fold_during_evaluation
from toast_cli.tasks.base import Meter, Objective, Target
from toast_cli.tasks.multilabel import THRESHOLD
from toast_cli.training.distributed.collectives import merge_across_processes, merge_dicts_across_processes
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import Session
from toast_cli.training.step import LossPartsMeter, TrainingStep
from toast_cli.utils.constants import IGNORE_INDEX


class SamplePredictions:
    """The label and the answer of every sample, in columns (see `describe_batch`); empty for other targets.

    For a task with a class per pixel, `confusion` has the counts of pixels `[labelled, predicted]` over all processes.
    `names` has the names of streamed samples by their index.
    """

    def __init__(self) -> None:
        self.confusion: np.ndarray | None = None
        self.names: dict[int, str] = {}
        self._batches: list[dict[str, np.ndarray]] = []

    def add(self, objective: Objective, outputs: Tensor, batch: dict[str, Any]) -> None:
        """Add the predictions of a batch, without samples whose label is ignored."""
        columns = describe_batch(objective, outputs, batch)
        if not columns:
            return
        label = batch["label"]
        kept = ~label.isnan().any(-1) if label.is_floating_point() else label != IGNORE_INDEX
        self._batches.append({name: each[kept.to(each.device)].cpu().numpy() for name, each in columns.items()})

    def merge(self, other: SamplePredictions) -> None:
        """Add the predictions of another process."""
        self._batches += other._batches
        self.names |= other.names

    def get_columns(self) -> dict[str, np.ndarray]:
        """Return the columns of the samples by index; empty without predictions."""
        if not self._batches:
            return {}
        order = np.concatenate([batch["index"] for batch in self._batches]).argsort(kind="stable")
        return {name: np.concatenate([batch[name] for batch in self._batches])[order] for name in self._batches[0]}


def describe_batch(objective: Objective, outputs: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the columns of a batch, whose first dimension is the samples; none for pixels and texts.

    All have the `index` of each sample. For a class per sample, `label` and `chosen` are classes, and `probability` is
    that of the chosen one, NaN if the task has no class scores. For labels, these have a value per label: whether the
    sample has it, whether it is chosen, and its probability. For numbers, `label` and `predicted` have a value each.
    """
    if objective.target == "number":
        return {"index": batch["index"], "label": batch["label"], "predicted": objective.compute_scores(outputs)}
    if objective.target == "labels":
        label, probability = batch["label"] > 0, objective.compute_scores(outputs)
        given = probability >= probability.new_tensor(list_thresholds(objective, label.shape[-1]))
        return {"index": batch["index"], "label": label, "chosen": given, "probability": probability}
    chosen = objective.predict_classes(outputs) if objective.target == "class" else None
    if chosen is None:
        return {}
    probability = torch.full(chosen.shape, torch.nan)
    if objective.class_scores:
        probability = objective.compute_scores(outputs).gather(-1, chosen[:, None])[:, 0]
    return {"index": batch["index"], "label": batch["label"], "chosen": chosen, "probability": probability}


def list_thresholds(objective: Objective, count: int) -> list[float]:
    """Return the probability from which each of `count` labels is given; empty if the answers are not labels."""
    if objective.target != "labels":
        return []
    return objective.describe_outputs().get("thresholds", [THRESHOLD] * count)


@dataclass(frozen=True)
class SplitAnswers:
    """The answers of a model to a split of a data set, for tables and pictures.

    Attributes:
        target: what the model answers: one class per sample or per pixel, several labels, or numbers.
        data: the options of the data source, and `data_dir`.
        split: the name of the split.
        samples: the split.
        classes: the names of the classes, labels or numbers.
        columns: by name, a value or a row per sample, see `describe_batch`. Empty if the target is a class per pixel.
        confusion: the number of pixels `[labelled, predicted]`; None if the target is not a class per pixel.
        names: the names of samples by index, if the split itself has none.
        thresholds: the probability from which each label is given, if the target is labels.
    """

    target: Target
    data: Mapping[str, Any]
    split: str
    samples: Split
    classes: tuple[str, ...]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    confusion: np.ndarray | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    thresholds: Sequence[float] = ()

    def get_sample_name(self, index: int) -> str:
        """Return the name of a sample, such as its file; of one without a name, its index."""
        names = getattr(self.samples, "names", self.names)
        return names[index] if hasattr(self.samples, "names") or index in names else str(index)


def answers_with_classes(objective: Objective) -> bool:
    """Return whether a model answers with a class per sample or per pixel."""
    return objective.target == "class" or (objective.target == "pixels" and objective.class_scores)


def can_collect_answers(objective: Objective) -> bool:
    """Return whether the answers of a model can be collected: classes, labels or numbers."""
    return objective.target in ("labels", "number") or answers_with_classes(objective)


AnswersCallback = Callable[[SplitAnswers], None]
"""A function that receives the answers to a split, in the first process, if they can be collected."""


def collect_answers(
    session: Session, split: str, samples: Split, predictions: SamplePredictions
) -> SplitAnswers | None:
    """Return the answers of all processes to a split; None for a task whose answers are not collected, such as texts.

    `split` is the name of the `samples`.

    This is a collective call: all processes must make it.
    """
    merged = merge_across_processes(predictions)
    columns = merged.get_columns()
    if not columns and merged.confusion is None:
        return None
    data, recipe = session.data, session.recipe
    return SplitAnswers(
        session.model.objective.target,
        {**recipe.dataset.model_dump(mode="json"), "data_dir": recipe.data_dir},
        split,
        samples,
        data.classes,
        columns,
        merged.confusion,
        merged.names,
        list_thresholds(session.model.objective, len(data.classes)),
    )


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
        """Return the value of every metric that a process has updated, unless it is NaN. This is a collective call."""
        updated = {name: "" for name, metric in self._metrics.items() if metric.update_called}
        values = {name: float(self._metrics[name].compute()) for name in merge_dicts_across_processes(updated)}
        return {name: value for name, value in values.items() if not isnan(value)}


@torch.no_grad()
def evaluate_model(
    model: Model,
    batches: Iterable[dict[str, Any]],
    accelerator: Accelerator,
    *,
    with_attention: bool = False,
    step: TrainingStep | None = None,
    answers: SamplePredictions | None = None,
    flips: bool = False,
    meter: Meter | None = None,
    notes: list[str] | None = None,
) -> dict[str, Any]:
    """Return the metrics over all batches of all processes.

    With `with_attention`, batches must have masks, and the result includes the attention shares. With a `step`, it
    includes the parts of its loss. `answers` receives this process's predictions. With `flips`, scores are averaged
    with those of the mirror images; attention is that of the images. A `meter` given holds the counts of all processes
    afterwards; its `class_counts` are not part of the metrics. With `notes`, the objective is calibrated on these
    batches before the metrics are computed, and `notes` receives what it says of that.
    """
    was_training = model.training
    model.eval()
    share = AttentionShare() if with_attention else None
    recorder = AttentionRecorder(model) if with_attention else None
    objective = model.objective
    meter, parts = meter or (step or objective).evaluation_meter(), LossPartsMeter()
    registered = RegisteredMetrics(objective, accelerator.device)
    count = len(batches) if isinstance(batches, Sized) else 1
    with fold_during_evaluation(model.adapted.steering, model.backbone, count):
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
                if flips:
                    outputs = average_with_mirror(model, batch, outputs)
            if objective.count(batch):
                meter.add(outputs, batch)
                registered.add(outputs, batch)
                if answers is not None:
                    answers.add(objective, outputs, batch)
    model.train(was_training)
    vars(meter).update(vars(merge_across_processes(meter)))
    if answers is not None and (confusion := meter.get_confusion()) is not None:
        answers.confusion = confusion.numpy()
    if notes is not None:
        notes += objective.calibrate(meter)
    metrics: dict[str, Any] = {**meter.result(), **merge_across_processes(parts).result()}
    # Those of the task come first, and keep their meaning whatever a plugin is called.
    metrics |= {name: value for name, value in registered.result().items() if name not in metrics}
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
