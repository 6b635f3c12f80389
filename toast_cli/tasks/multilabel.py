"""Several labels per image: a linear head, binary cross-entropy, average precision, and a threshold per label.

Thresholds are chosen on the validation split after training: for each label, the one with the largest F1. They are a
buffer of the head, so adapters and exports hold them. Until then, and for a label without a validation image, they
are 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field, PositiveFloat

from toast_cli.tasks.base import EpochSelection, Meter, Objective, SampleMeasure, Task
from toast_cli.tasks.classification import order_class_weights
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.constants import NOTHING_TO_MEASURE
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from toast_cli.backbones.base import Backbone

THRESHOLD = 0.5
"""Threshold of a label before it is chosen."""

MAX_NAMED = 5
"""Number of labels that a note names."""


class MultilabelOptions(NamedOptions):
    """Options of several labels per image."""

    name: Literal["multilabel"] = Field("multilabel", description="the task")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, examples=[0.1], description="targets in training are moved towards 0.5 by this share"
    )
    class_weights: Literal["balanced"] | dict[str, PositiveFloat] | None = Field(
        None,
        examples=["balanced", {"rare": 5.0}],
        description="weights of the images that have a label, in the loss of training; balanced: images without the "
        "label divided by images with it; or a weight by label name, 1 for those left out",
    )
    thresholds: Literal["f1", "half"] = Field(
        "f1",
        description="probability from which a label is given; f1: per label, the one with the largest F1 on the "
        "validation split; half: 0.5",
    )
    select: str = Field(
        "mean_ap",
        examples=["micro_ap"],
        description="metric on the validation split that selects the best epoch; loss is minimized",
    )


class LossMeter(Meter):
    """The mean binary cross-entropy over images."""

    def __init__(self) -> None:
        super().__init__(loss=0.0, images=0)

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add logits `[B, labels]` with labels `[B, labels]` of 0 and 1, NaN for an image that is left out."""
        known = ~batch["label"][:, 0].isnan()
        self.sums["loss"] += compute_label_loss(outputs[known], batch["label"][known]).item()
        self.sums["images"] += int(known.sum())

    def result(self) -> dict[str, Any]:
        """Return the `loss` per image and label, and the number of `images`.

        Raises:
            ToastError: There is no image.
        """
        if not self.sums["images"]:
            raise ToastError(
                "There is nothing to measure: no image of this split could be read.",
                what_to_do="Run 'toast data check' to see what is wrong with each.",
                code=NOTHING_TO_MEASURE,
            )
        return {"loss": self.sums["loss"] / self.sums["images"], "images": self.sums["images"]}


class MultilabelMeter(LossMeter):
    """Average precision and F1, computed from the scores of all images: five bytes for each image and label.

    `scores` and `labels` hold a tensor `[n, labels]` per batch: probabilities, and whether the image has the label.
    """

    def __init__(self, objective: Multilabel) -> None:
        super().__init__()
        self.names, self.thresholds = objective.classes, objective.thresholds.detach().float().cpu()
        self.scores: list[Tensor] = []
        self.labels: list[Tensor] = []

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add logits `[B, labels]` with labels `[B, labels]` of 0 and 1, NaN for an image that is left out."""
        super().add(outputs, batch)
        known = ~batch["label"][:, 0].isnan()
        self.scores.append(outputs[known].float().sigmoid().cpu())
        self.labels.append(batch["label"][known].bool().cpu())

    def merge(self, other: Meter) -> None:
        """Add the counts and scores of another meter, from another process."""
        super().merge(other)
        other = cast("MultilabelMeter", other)
        self.scores += other.scores
        self.labels += other.labels

    def result(self) -> dict[str, Any]:
        """Return average precision and F1.

        `mean_ap` and `f1` are means over the labels that some image has; `micro_ap` and `micro_f1` are those of all
        answers together. `label_ap` and `label_f1` are those of each label, None for a label that no image has.

        Raises:
            ToastError: There is no image, or no image has a label.
        """
        import torch
        from torchmetrics.functional.classification import binary_average_precision, binary_f1_score

        found = super().result()
        scores, labels = torch.cat(self.scores), torch.cat(self.labels).long()
        given = (scores >= self.thresholds).long()
        precision: dict[str, float | None] = dict.fromkeys(self.names)
        f1: dict[str, float | None] = dict.fromkeys(self.names)
        present = labels.any(0).nonzero().flatten().tolist()
        for label in present:
            name = self.names[label]
            precision[name] = float(binary_average_precision(scores[:, label], labels[:, label]))
            f1[name] = float(binary_f1_score(given[:, label], labels[:, label]))
        if not present:
            raise ToastError(
                "There is nothing to measure: no image of this split has a label.",
                what_to_do="Choose another split, or give some of its images a label.",
                code=NOTHING_TO_MEASURE,
            )
        return {
            "mean_ap": _compute_mean(precision.values()),
            "micro_ap": float(binary_average_precision(scores.flatten(), labels.flatten())),
            "f1": _compute_mean(f1.values()),
            "micro_f1": float(binary_f1_score(given.flatten(), labels.flatten())),
            **found,
            "label_ap": precision,
            "label_f1": f1,
        }


def _compute_mean(values: Iterable[float | None]) -> float:
    """Return the mean of the values that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


class Multilabel(Objective):
    """Head, loss and metrics for labels that do not exclude each other."""

    target = "labels"
    selection = EpochSelection("mean_ap")
    measure = SampleMeasure("f1_per_image", "F1 per image")

    def __init__(self, head: nn.Module, classes: tuple[str, ...], options: MultilabelOptions) -> None:
        self.head = head
        self.classes = classes
        self.options = options
        self.positive_weights = order_class_weights(options.class_weights, classes)
        """Weight of an image that has the label, against one that lacks it, `[labels]`; None if all weights are 1."""
        self.calibrates = options.thresholds == "f1"

    @property
    def thresholds(self) -> Tensor:
        """The probability from which each label is given, `[labels]`."""
        return cast("Tensor", self.head.thresholds)

    def inputs(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the images `[B, 3, H, W]`."""
        return batch["image"]

    def count(self, batch: Mapping[str, Any]) -> int:
        """Return the number of images that are not left out."""
        return int((~batch["label"][:, 0].isnan()).sum())

    def fit_to_labels(self, labels: Sequence[Any] | None) -> None:
        """Compute balanced weights: (N - n) / n for a label that n of N images have, 1 for one that none has."""
        if self.options.class_weights != "balanced":
            return
        if labels is None:
            raise UsageError(
                "task.class_weights=balanced needs the labels of every training image before the first step.",
                "The images are streamed, so their labels are only known once they have been read.",
                "Give the weights by name: task.class_weights={NAME: WEIGHT}.",
                code="task.unknown-class-counts",
            )
        import torch

        rows = torch.as_tensor(labels, dtype=torch.float32)
        rows = rows[~rows[:, 0].isnan()]
        having = rows.sum(0)
        self.positive_weights = torch.where(having > 0, (len(rows) - having) / having.clamp_min(1), 1.0)

    def loss(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the binary cross-entropy of logits `[B, labels]`, averaged over labels and summed over images."""
        known, weights = ~batch["label"][:, 0].isnan(), self.positive_weights
        return compute_label_loss(
            outputs[known],
            batch["label"][known],
            self.options.label_smoothing,
            None if weights is None else weights.to(outputs.device),
        )

    def compute_scores(self, outputs: Tensor) -> Tensor:
        """Return the probability of every label, `[B, labels]`."""
        return outputs.float().sigmoid()

    def measure_samples(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the F1 of the labels of each image, 1 if it has none and none is given, `[B]`."""
        given, labels = self.compute_scores(outputs) >= self.thresholds, batch["label"]
        total = given.sum(-1) + labels.sum(-1)  # NaN for an image to ignore
        return (2 * (given * labels).sum(-1) / total).where(total != 0, 1.0)

    def describe_outputs(self) -> dict[str, Any]:
        """Return that outputs are logits of independent labels, and the thresholds of their probabilities."""
        return {**super().describe_outputs(), "activation": "sigmoid", "thresholds": self.thresholds.tolist()}

    def meter(self) -> LossMeter:
        """Return a new meter of the loss alone: average precision needs every score."""
        return LossMeter()

    def evaluation_meter(self) -> MultilabelMeter:
        """Return a new meter of average precision and F1."""
        return MultilabelMeter(self)

    def calibrate(self, meter: Meter) -> list[str]:
        """Choose the threshold of every label that has the largest F1 on the images of a meter."""
        import torch

        meter = cast("MultilabelMeter", meter)
        scores, labels = torch.cat(meter.scores), torch.cat(meter.labels)
        chosen = [choose_threshold(scores[:, label], labels[:, label]) for label in range(len(self.classes))]
        self.thresholds.copy_(torch.tensor([THRESHOLD if value is None else value for value in chosen]))
        meter.thresholds = self.thresholds.float().cpu()
        return describe_thresholds(self.classes, chosen)


def compute_label_loss(
    outputs: Tensor, labels: Tensor, smoothing: float = 0.0, positive_weights: Tensor | None = None
) -> Tensor:
    """Return the binary cross-entropy of logits `[B, labels]`, averaged over labels and summed over images.

    The terms of images that have a label are multiplied by its weight `[labels]`.
    """
    from torch.nn import functional as F

    target = labels.float() * (1 - smoothing) + smoothing / 2
    terms = F.binary_cross_entropy_with_logits(outputs.float(), target, reduction="none", pos_weight=positive_weights)
    return terms.mean(-1).sum()


def choose_threshold(scores: Tensor, labels: Tensor) -> float | None:
    """Return the threshold with the largest F1: halfway to the next lower score, so that rounding changes no answer.

    Args:
        scores: Probabilities of one label, `[n]`.
        labels: Whether each image has the label, `[n]` bool.

    Returns:
        The largest such threshold, or None if no image has the label.
    """
    from torchmetrics.functional.classification import binary_precision_recall_curve

    if not labels.any():
        return None
    precision, recall, thresholds = binary_precision_recall_curve(scores, labels.long())
    precision, recall = precision[:-1].double(), recall[:-1].double()  # the last point has no threshold
    f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
    best = int((f1 >= f1.max() - 1e-12).nonzero()[-1])
    lower = float(thresholds[best - 1]) if best else 0.0
    return (float(thresholds[best]) + lower) / 2


def describe_thresholds(classes: Sequence[str], chosen: Sequence[float | None]) -> list[str]:
    """Return sentences on the thresholds of labels, which are None for those without a validation image."""
    known = [value for value in chosen if value is not None]
    missing = [name for name, value in zip(classes, chosen, strict=True) if value is None]
    notes = [f"Thresholds chosen on validation by F1: from {min(known):.3f} to {max(known):.3f}."] if known else []
    if missing:
        named = ", ".join(f"'{name}'" for name in missing[:MAX_NAMED])
        more = f" and {len(missing) - MAX_NAMED:,} more" if len(missing) > MAX_NAMED else ""
        notes.append(f"Warning: no validation image has {named}{more}: the threshold stays {THRESHOLD}.")
    return notes


def build_multilabel(options: MultilabelOptions, backbone: Backbone, classes: tuple[str, ...]) -> Multilabel:
    """Build a linear head (weights normal with standard deviation 0.02, bias zero) with a buffer of thresholds."""
    import torch
    from torch import nn

    head = nn.Linear(backbone.head_width, len(classes))
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    head.register_buffer("thresholds", torch.full((len(classes),), THRESHOLD))
    return Multilabel(head, classes, options)


TASK = Task(
    MultilabelOptions,
    build_multilabel,
    metrics={"mean_ap": True, "micro_ap": True, "f1": True, "micro_f1": True, "loss": False},
)
