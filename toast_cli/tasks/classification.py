"""Image classification: a linear head on the pooled features, cross-entropy, accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toast_cli.options import Named
from toast_cli.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor, nn


class Options(Named):
    """Classification's settings."""

    name: Literal["classification"] = Field("classification", description="the task")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target spread over all classes while training"
    )


@dataclass
class Classification:
    """Head, loss and metrics over a fixed, ordered set of classes.

    `selected_by` names the validation metric (higher is better) that decides which epoch is kept.
    """

    head: nn.Module
    label_smoothing: float
    selected_by: str = "accuracy"

    def loss(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy of logits `[B, classes]` against `batch["label"]` `[B]`."""
        from torch.nn import functional as F

        return F.cross_entropy(logits.float(), batch["label"], label_smoothing=self.label_smoothing)

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Accuracy over all images, mean of the per-class accuracies, and cross-entropy, from a whole split."""
        from torch.nn import functional as F

        right = (logits.argmax(-1) == labels).double()
        per_class = [right[labels == label].mean() for label in labels.unique()]
        return {
            "accuracy": float(right.mean()),
            "class_accuracy": float(sum(per_class) / len(per_class)),
            "loss": float(F.cross_entropy(logits.float(), labels)),
        }


def build(options: Options, head_width: int, classes: tuple[str, ...]) -> Classification:
    """A head for these classes, biased, its weights normal with standard deviation 0.02 and its bias zero."""
    from torch import nn

    head = nn.Linear(head_width, len(classes))
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return Classification(head, options.label_smoothing)


TASK = Task(Options, build)
