"""The interface of tasks: a head on the pooled features, a loss, and metrics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from toast_cli.backbones.base import Backbone, Readout
    from toast_cli.tasks.class_counts import ClassCounts


class Meter(ABC):
    """Metrics of a split, accumulated batch by batch so that the split need not fit into memory.

    All counts are in `sums`, numbers or integer tensors by name. They are summed over processes and saved for
    interrupted runs.
    """

    def __init__(self, **sums: Any) -> None:
        self.sums = sums

    @abstractmethod
    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add one batch."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Return the metrics so far, including `loss`."""

    def get_confusion(self) -> Tensor | None:
        """Return the counts of pixels `[labelled, predicted]` so far; None for tasks without a class per pixel."""
        return None

    def class_counts(self) -> ClassCounts | None:
        """Return the counts by class, which are too many for a line of metrics; None if the task has none."""
        return None

    def merge(self, other: Meter) -> None:
        """Add the counts of another meter of the same kind, from another process."""
        self.sums = {name: value + other.sums[name] for name, value in self.sums.items()}

    def state(self) -> dict[str, Any]:
        """Return the sums as JSON values."""
        return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in self.sums.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the sums from `state`."""
        for name, value in self.sums.items():
            self.sums[name] = value.new_tensor(state[name]) if hasattr(value, "new_tensor") else state[name]


Target = Literal["class", "labels", "number", "pixels", "text"]
"""What a model answers for a sample: one class, several labels, numbers, a class for every pixel, or text."""


@dataclass(frozen=True)
class EpochSelection:
    """The metric that selects the best epoch: its name, and whether higher is better."""

    name: str
    higher: bool = True

    def score(self, metrics: Mapping[str, Any]) -> float:
        """Return the metric with its sign chosen so that higher is better.

        Raises:
            ToastError: The metric is not defined on this split.
        """
        value = metrics.get(self.name)
        if value is None or not isfinite(value):
            raise ToastError(
                f"The best epoch cannot be selected by {self.name}: it is not defined on the validation split.",
                f"It was {value}." if value is not None else "",
                "Choose another metric with task.select=NAME, or add validation images of more classes.",
                code="task.undefined-metric",
            )
        return value if self.higher else -value


@dataclass(frozen=True)
class SampleMeasure:
    """What is measured of the answer for one sample, whose mean over samples is reported.

    Args:
        name: Name in records and tables of numbers.
        label: Name in tables for readers.
        percent: Whether it is a share, of which more is better; else it is an error.
    """

    name: str
    label: str
    percent: bool = True


def measure_classes(outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Return 1 for each sample with the right class and 0 for others, NaN for samples to ignore, `[B]`."""
    return (outputs.argmax(-1) == batch["label"]).float().masked_fill(batch["label"] < 0, float("nan"))


class Objective(ABC):
    """The objective of a task: `head` maps features to outputs, the other methods compute losses and metrics.

    An objective with `reads_levels` has its own `features`, computed from every level's output. Others only use the
    pooled features. The outputs of a `dense` objective have a value per pixel. With `has_variable_cost`, `predict` may
    run the model a different number of times for different batches. Without `class_scores`, the outputs are not class
    scores: such a task trains a backbone and gives no predictions. `metrics` makes the registered metrics of the
    logits by name. `target` is what the model answers for a sample. `output_layers` are the layers within the head
    whose weights have a row for each of `Task.name_outputs`, so that a model for other classes can start from these
    rows; the empty name is the head itself. `selection` is the metric that selects the best epoch. With `calibrates`,
    the selected model is evaluated once more on the validation split, for `calibrate`. `measure` is what
    `measure_samples` returns for each sample.
    """

    head: nn.Module
    target: Target = "class"
    reads_levels: bool = False
    dense: bool = False
    has_variable_cost: bool = False
    class_scores: bool = True
    output_layers: tuple[str, ...] = ("",)
    selection: EpochSelection = EpochSelection("loss", higher=False)
    calibrates: bool = False
    measure: SampleMeasure = SampleMeasure("correct", "accuracy")
    metrics: Mapping[str, Callable[[], Any]] = MappingProxyType({})

    @abstractmethod
    def inputs(self, batch: Mapping[str, Any]) -> Any:
        """Return the part of a batch that is the backbone's input."""

    def features(self, backbone: Backbone, readout: Readout, levels: Sequence[Tensor], inputs: Any) -> Any:
        """Return the input of the head, from the last pass: by default the pooled features.

        Args:
            backbone: The backbone.
            readout: The output of the pass.
            levels: Every level's output, if the objective has `reads_levels`.
            inputs: The backbone's inputs.
        """
        return readout.pooled

    def predict(self, model: Callable[[Any], Tensor], batch: Mapping[str, Any]) -> Tensor:
        """Return the outputs for a batch in evaluation; `model` maps inputs to outputs."""
        return model(self.inputs(batch))

    @abstractmethod
    def count(self, batch: Mapping[str, Any]) -> int:
        """Return the number of terms in the batch's loss."""

    def sum_weights(self, batch: Mapping[str, Any]) -> float:
        """Return the weight of the batch's loss, by which that of a step is divided: by default the count of its terms.

        A loss with weights per class is divided by the sum of the weights of its samples.
        """
        return self.count(batch)

    def fit_to_labels(  # noqa: B027 (most tasks take nothing from the labels)
        self, labels: Sequence[Any] | None
    ) -> None:
        """Set what the task takes from the labels of the training split, before the first step, such as class weights.

        Most tasks do nothing. The labels are None if they are not known in advance.

        Raises:
            UsageError: The options of the task need the labels, and they are unknown.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the training loss, summed over the batch."""

    def make_loss_probe(self, outputs: Tensor, sample: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Any]]:
        """Return zeros as outputs for a sample, and that sample, to measure what the loss of its terms keeps.

        `outputs` are those of a batch, of which only shape and type are used. A task whose loss grows in proportion to
        its terms may return fewer of them.
        """
        import torch

        return torch.zeros(outputs[:1].shape, dtype=outputs.dtype), sample

    def apply_mixup(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch with its samples mixed, for tasks that train with mixup."""
        return batch

    def predict_classes(self, outputs: Tensor) -> Tensor | None:
        """Return the class predicted for each sample `[B]`, or None for a task without a class per sample."""
        return None

    def compute_scores(self, outputs: Tensor) -> Tensor:
        """Return the score of every class, `[B, classes]`: its probability by the softmax of the logits.

        Labels that do not exclude each other have independent probabilities. Numbers are in the units of the data.
        """
        return outputs.float().softmax(-1)

    def average_outputs(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the outputs whose scores (`compute_scores`) are the mean of those of several outputs `[B, n, ...]`."""
        import torch

        stacked = torch.stack(list(outputs)).float()
        if self.target == "number":
            return stacked.mean(0)
        if self.target == "labels":
            return stacked.sigmoid().mean(0).logit(eps=1e-7)
        return stacked.log_softmax(2).logsumexp(0) - math.log(len(stacked))

    def measure_samples(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the `measure` of each sample, NaN for samples to ignore, `[B]`."""
        return measure_classes(outputs, batch)

    def describe_outputs(self) -> dict[str, Any]:
        """Return what a reader of exported outputs must know to compute scores from them, as JSON values."""
        return {"target": self.target, "activation": "softmax"}

    def get_scores_and_labels(self, outputs: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Return class scores `[n, classes]` and labels `[n]` for registered metrics, or None if there are none."""
        return None

    @abstractmethod
    def meter(self) -> Meter:
        """Return a new meter. Training adds every batch to one, so it should be cheap."""

    def evaluation_meter(self) -> Meter:
        """Return a new meter for validation, test and `toast eval`, which may measure more.

        It is merged over processes, but never saved.
        """
        return self.meter()

    def calibrate(self, meter: Meter) -> list[str]:
        """Set what the task chooses on the validation split after training, from its meter; return notes on it.

        Only an objective that `calibrates` is asked.
        """
        return []

    def score(self, metrics: Mapping[str, Any]) -> float:
        """Return the score that selects the best epoch, from its validation metrics. Higher is better."""
        return self.selection.score(metrics)


@dataclass(frozen=True)
class Task:
    """A registered task.

    Args:
        options: Its options. A field `select` names the metric that selects the best epoch.
        build: Returns its `Objective`, given the options, the backbone and the class names.
        name_outputs: Returns the names of the head's outputs in their order, given the options and the class names; by
            default the classes.
        metrics: The metrics of its meter that `select` may name, and whether higher is better.
    """

    options: type[NamedOptions]
    build: Callable[[Any, Backbone, tuple[str, ...]], Objective]
    name_outputs: Callable[[Any, tuple[str, ...]], tuple[str, ...]] = lambda options, classes: classes
    metrics: Mapping[str, bool] = field(default_factory=dict)

    def list_selectable_metrics(self, registered: Mapping[str, Metric]) -> dict[str, bool]:
        """Return what `select` may name, and whether higher is better: `metrics` and those `registered` for logits."""
        of_logits = {name: metric.higher for name, metric in registered.items() if metric.needs == "logits"}
        return {**(of_logits if "accuracy" in self.metrics else {}), **self.metrics}


@dataclass(frozen=True)
class Metric:
    """A registered metric, reported beside those of the task in every evaluation that has what it needs.

    Args:
        label: Name in tables.
        build: Returns what measures, given the class names. For `logits`, a `torchmetrics.Metric`: `update` takes
            scores `[n, classes]` and labels `[n]`, `compute` returns one number, over all processes. For `attention`, a
            function of maps `[B, rows, columns]` and object masks `[B, H, W]` that returns a number per image, `[B]`.
        needs: `logits`: evaluations of a task with a class per sample; `attention`: `toast eval --attention` on images
            with masks.
        higher: Whether higher is better.
        percent: Whether the number is a share, shown in percent.
        meaning: What the number is, for the record of an evaluation; default: the label.
    """

    label: str
    build: Callable[[tuple[str, ...]], Any]
    needs: Literal["logits", "attention"] = "logits"
    higher: bool = True
    percent: bool = True
    meaning: str = ""

    def format(self, value: float) -> str:
        """Format a value for a table."""
        return f"{value:.2%}" if self.percent else f"{value:.4g}"
