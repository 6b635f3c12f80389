"""Image classification: a linear head on the pooled features, cross-entropy, accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal
from unicodedata import normalize

from pydantic import Field, PositiveFloat

from toast_cli.tasks.base import EpochSelection, Meter, Metric, Objective, Task
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.constants import IGNORE_INDEX, NOTHING_TO_MEASURE
from toast_cli.utils.errors import ToastError, UsageError, did_you_mean
from toast_cli.utils.names import escape_newlines

if TYPE_CHECKING:
    from torch import Tensor, nn

    from toast_cli.backbones.base import Backbone
    from toast_cli.tasks.auroc import MacroAUROC
    from toast_cli.tasks.classification_meter import ClassificationMeter


SMALLEST_MISS = 1e-6
"""Bound of 1 - p in the focal loss: the gradient of its power is infinite at 0 if gamma is below 1."""


class ClassificationOptions(NamedOptions):
    """Options of classification."""

    name: Literal["classification"] = Field("classification", description="the task")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, examples=[0.1], description="share of the target spread over all classes in training"
    )
    mixup: float = Field(0.0, ge=0, examples=[0.8], description="alpha of mixup, which blends training images; 0: off")
    cutmix: float = Field(
        0.0, ge=0, examples=[1.0], description="alpha of cutmix, which pastes patches of training images; 0: off"
    )
    loss: Literal["cross-entropy", "focal"] = Field(
        "cross-entropy",
        description="loss of training; focal: cross-entropy times (1 - p)^focal_gamma, where p is the probability of "
        "the class, so that images that are already right count less",
    )
    focal_gamma: float = Field(
        2.0, ge=0, le=10, examples=[1.0], description="loss=focal: the exponent; 0 is cross-entropy"
    )
    class_weights: Literal["balanced"] | dict[str, PositiveFloat] | None = Field(
        None,
        examples=["balanced", {"rare": 5.0}],
        description="weights of the classes in the loss of training; balanced: inversely proportional to the number of "
        "training images; or a weight by class name, 1 for those left out",
    )
    head: Literal["new", "own"] = Field(
        "new", description="new: train a new head for these classes; own: use the backbone's own classifier, frozen"
    )
    select: str = Field(
        "accuracy",
        examples=["macro_f1"],
        description="metric on the validation split that selects the best epoch; loss is minimized",
    )


class TrainingMeter(Meter):
    """The cheap metrics of a training epoch: accuracy over all images, mean per-class accuracy, and cross-entropy."""

    def __init__(self, classes: int) -> None:
        import torch

        total, right = (torch.zeros(classes, dtype=torch.int64) for _ in range(2))
        super().__init__(total=total, right=right, loss=0.0)

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add logits `[B, classes]` with labels `batch["label"]` `[B]`."""
        from torch.nn import functional as F

        labels, right = batch["label"].cpu(), (outputs.argmax(-1) == batch["label"]).cpu()
        self.sums["total"] += labels.bincount(minlength=len(self.sums["total"]))
        self.sums["right"] += labels[right].bincount(minlength=len(self.sums["right"]))
        self.sums["loss"] += F.cross_entropy(outputs.float(), batch["label"], reduction="sum").item()

    def result(self) -> dict[str, float]:
        """Return `accuracy`, `class_accuracy` over the classes that occur, `loss`, and the number of `images`.

        Raises:
            ToastError: There is no image.
        """
        total, right = self.sums["total"], self.sums["right"]
        images, seen = int(total.sum()), total > 0
        if not images:
            raise ToastError(
                "There is nothing to measure: no image of this split could be read.",
                what_to_do="Run 'toast data check' to see what is wrong with each.",
                code=NOTHING_TO_MEASURE,
            )
        return {
            "accuracy": int(right.sum()) / images,
            "class_accuracy": float((right[seen].double() / total[seen]).mean()),
            "loss": self.sums["loss"] / images,
            "images": images,
        }


class Classification(Objective):
    """Head, loss and metrics for a fixed, ordered set of classes."""

    selection = EpochSelection("accuracy")

    def __init__(
        self, head: nn.Module, classes: int, options: ClassificationOptions, weights: Tensor | None = None
    ) -> None:
        self.head = head
        self.classes = classes
        self.options = options
        self.weights = weights
        """Weight of each class in the loss, `[classes]`; None if all weights are 1."""

    def inputs(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the images `[B, 3, H, W]`."""
        return batch["image"]

    def count(self, batch: Mapping[str, Any]) -> int:
        """Return the number of labelled images."""
        return int((batch["label"] != IGNORE_INDEX).sum())

    def sum_weights(self, batch: Mapping[str, Any]) -> float:
        """Return the summed class weights of the labelled images.

        The mean loss is then that of `torch.nn.functional.cross_entropy` with the same weights. Mixing does not change
        the sum, because every label of a batch stays in it with the same total share.
        """
        if self.weights is None:
            return self.count(batch)
        labels = batch["label"]
        return float(self.weights.to(labels.device)[labels[labels != IGNORE_INDEX]].double().sum())

    def fit_to_labels(self, labels: Sequence[int] | None) -> None:
        """Compute balanced weights: N / (classes * n) for a class with n of N images, so that their mean is 1."""
        if self.options.class_weights != "balanced":
            return
        if labels is None:
            raise UsageError(
                "task.class_weights=balanced needs the class of every training image before the first step.",
                "The images are streamed, so their classes are only known once they have been read.",
                "Give the weights by class name: task.class_weights={NAME: WEIGHT}.",
                code="task.unknown-class-counts",
            )
        import torch

        counts = torch.tensor(labels).bincount(minlength=self.classes)
        present = counts > 0
        self.weights = torch.where(present, len(labels) / (present.sum() * counts.clamp_min(1)), 0.0)

    def loss(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the summed loss of logits `[B, classes]` and `batch["label"]` `[B]`, or the mixed targets."""
        from torch.nn import functional as F

        target, smoothing = batch.get("target", batch["label"]), self.options.label_smoothing
        weights = None if self.weights is None else self.weights.to(outputs.device)
        if self.options.loss == "focal":
            return sum_focal_loss(outputs.float(), target, self.options.focal_gamma, weights, smoothing)
        return F.cross_entropy(outputs.float(), target, weight=weights, label_smoothing=smoothing, reduction="sum")

    def apply_mixup(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch with mixed images and soft targets. With both on, one is chosen at random."""
        from torchvision.transforms import v2

        kinds = [(v2.MixUp, self.options.mixup), (v2.CutMix, self.options.cutmix)]
        mixes = [kind(alpha=alpha, num_classes=self.classes) for kind, alpha in kinds if alpha > 0]
        if not mixes or not self.count(batch):
            return batch
        image, target = v2.RandomChoice(mixes)(batch["image"], batch["label"])
        return {**batch, "image": image, "target": target}

    def predict_classes(self, outputs: Tensor) -> Tensor:
        """Return the class of the largest logit."""
        return outputs.argmax(-1)

    def get_scores_and_labels(self, outputs: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the logits and labels of the labelled images."""
        labelled = batch["label"] != IGNORE_INDEX
        return outputs[labelled].float(), batch["label"][labelled]

    def meter(self) -> TrainingMeter:
        """Return a new meter of accuracy and cross-entropy."""
        return TrainingMeter(self.classes)

    def evaluation_meter(self) -> ClassificationMeter:
        """Return a new meter of every metric of classification, with counts by class."""
        from toast_cli.tasks.classification_meter import ClassificationMeter

        return ClassificationMeter(self.classes)


def build_classification(
    options: ClassificationOptions, backbone: Backbone, classes: tuple[str, ...]
) -> Classification:
    """Build a linear head (weights normal with standard deviation 0.02, bias zero), or use the backbone's classifier.

    Raises:
        UsageError: The backbone has no classifier, or it does not know these classes; a weight is for another class; or
            `select` needs more classes.
    """
    from torch import nn

    if options.select == "top5_accuracy" and len(classes) <= 5:
        raise UsageError(
            "task.select=top5_accuracy needs more than five classes.",
            f"The data has {len(classes)}.",
            "Choose another metric.",
            code="task.undefined-metric",
        )
    weights = order_class_weights(options.class_weights, classes)

    if options.head == "own":
        if backbone.classifier is None:
            raise UsageError(
                f"{type(backbone.module).__name__} has no classifier of its own.",
                what_to_do="Use task.head=new.",
                code="task.no-classifier",
            )
        return Classification(backbone.classifier(classes).requires_grad_(False), len(classes), options, weights)
    head = nn.Linear(backbone.head_width, len(classes))
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return Classification(head, len(classes), options, weights)


def sum_focal_loss(
    logits: Tensor, target: Tensor, gamma: float, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Return the focal loss summed over a batch: `-(1 - p)^gamma log p` for the labelled class.

    Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 4. torchvision has it for independent classes
    only. With gamma = 0, it is the cross-entropy. The loss of a soft target is the sum over its classes, each times its
    share.

    Args:
        logits: `[B, classes]`.
        target: Classes `[B]`, where `IGNORE_INDEX` has no loss, or shares of the classes `[B, classes]`.
        gamma: The exponent.
        weights: Weight of each class `[classes]`.
        smoothing: Share of the target that is spread over all classes.
    """
    from torch.nn import functional as F

    classes = logits.shape[-1]
    if target.ndim == 1:
        labelled = target != IGNORE_INDEX
        logits, target = logits[labelled], F.one_hot(target[labelled], classes)
    target = target * (1 - smoothing) + smoothing / classes
    log_probabilities = logits.log_softmax(-1)
    misses = (-log_probabilities.expm1()).clamp_min(SMALLEST_MISS)
    terms = -target * misses**gamma * log_probabilities
    return (terms if weights is None else terms * weights).sum()


def order_class_weights(given: str | Mapping[str, float] | None, classes: tuple[str, ...]) -> Tensor | None:
    """Return weights by class name in the order of the classes; None if they are not given by name.

    Raises:
        UsageError: There is no class of a name.
    """
    import torch

    if not isinstance(given, Mapping):
        return None
    by_name = {normalize("NFC", name): weight for name, weight in given.items()}
    known = {normalize("NFC", name): index for index, name in enumerate(classes)}
    weights = torch.ones(len(classes))
    for name, weight in by_name.items():
        if name not in known:
            raise UsageError(
                f"task.class_weights has '{escape_newlines(name)}', and the data has no class of that name.",
                what_to_do=did_you_mean(name, classes),
                code="task.unknown-class",
            )
        weights[known[name]] = weight
    return weights


def build_auroc(classes: tuple[str, ...]) -> MacroAUROC:
    """Build the mean area under the ROC curve, one class against the rest."""
    from toast_cli.tasks.auroc import MacroAUROC

    return MacroAUROC(len(classes))


HIGHER = (
    "accuracy top5_accuracy class_accuracy macro_precision macro_recall macro_f1 weighted_precision "
    "weighted_recall weighted_f1"
)
TASK = Task(
    ClassificationOptions,
    build_classification,
    metrics={**dict.fromkeys(HIGHER.split(), True), "calibration_error": False, "loss": False},
)
AUROC = Metric("AUROC", build_auroc)
