"""Image classification: a linear head on the pooled features, cross-entropy, accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toast_cli.tasks.base import EpochSelection, Meter, Metric, Objective, Task
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.constants import IGNORE_INDEX, NOTHING_TO_MEASURE
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from toast_cli.backbones.base import Backbone
    from toast_cli.tasks.auroc import MacroAUROC
    from toast_cli.tasks.classification_meter import ClassificationMeter


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

    def __init__(self, head: nn.Module, classes: int, options: ClassificationOptions) -> None:
        self.head = head
        self.classes = classes
        self.options = options

    def inputs(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the images `[B, 3, H, W]`."""
        return batch["image"]

    def count(self, batch: Mapping[str, Any]) -> int:
        """Return the number of labelled images."""
        return int((batch["label"] != IGNORE_INDEX).sum())

    def loss(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the summed cross-entropy of logits `[B, classes]` and `batch["label"]` `[B]`, or the mixed targets."""
        from torch.nn import functional as F

        target, smoothing = batch.get("target", batch["label"]), self.options.label_smoothing
        return F.cross_entropy(outputs.float(), target, label_smoothing=smoothing, reduction="sum")

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
        UsageError: The backbone has no classifier, or it does not know these classes; or `select` needs more classes.
    """
    from torch import nn

    if options.select == "top5_accuracy" and len(classes) <= 5:
        raise UsageError(
            "task.select=top5_accuracy needs more than five classes.",
            f"The data has {len(classes)}.",
            "Choose another metric.",
            code="task.undefined-metric",
        )

    if options.head == "own":
        if backbone.classifier is None:
            raise UsageError(
                f"{type(backbone.module).__name__} has no classifier of its own.",
                what_to_do="Use task.head=new.",
                code="task.no-classifier",
            )
        return Classification(backbone.classifier(classes).requires_grad_(False), len(classes), options)
    head = nn.Linear(backbone.head_width, len(classes))
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return Classification(head, len(classes), options)


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
    {**dict.fromkeys(HIGHER.split(), True), "calibration_error": False, "loss": False},
)
AUROC = Metric("AUROC", build_auroc)
