"""The interface of an explanation, and what explanations by gradients share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from toast_cli.attention.map_validation import MISMATCH_TOLERANCE
from toast_cli.attention.maps import HeadSelection
from toast_cli.model.model import Model
from toast_cli.utils.errors import UsageError


@dataclass(frozen=True)
class ExplainedBatch:
    """A batch of images whose prediction is explained.

    Attributes:
        model: the model, in evaluation mode.
        images: the images, `[B, 3, H, W]`.
        outputs: the index of the explained output of each image, `[B]`.
        level: the level whose attention is shown; negative numbers count from the end.
        head: the head whose attention is shown.
    """

    model: Model
    images: Tensor
    outputs: Tensor
    level: int = -1
    head: HeadSelection = "mean"


@dataclass(frozen=True)
class Explanation:
    """A way to explain a prediction by a map.

    `compute` returns maps `[B, rows, columns]` by pass: `pass_one` and, with two passes, `pass_two`. Larger values mark
    cells that matter more; cells that speak against the output may be negative. `depends_on_class` is whether the map
    is that of one output. `title` is what a figure calls it.
    """

    name: str
    title: str
    depends_on_class: bool
    compute: Callable[[ExplainedBatch], Mapping[str, Tensor]]


def pool_to_grid(maps: Tensor, batch: ExplainedBatch) -> Tensor:
    """Return the mean of maps `[B, H, W]` over each cell of the backbone's grid, `[B, rows, columns]`."""
    return F.adaptive_avg_pool2d(maps[:, None], batch.model.backbone.grid(batch.images))[:, 0]


def require_image_classifier(model: Model, what: str) -> None:
    """Check that a model has scores of whole images.

    Raises:
        UsageError: the model labels pixels or tokens, or reads texts.
    """
    if model.objective.dense or model.backbone.preprocessing is None:
        raise UsageError(f"{what} needs a model that classifies images.", code="attention.unsupported-task")


def find_mismatch(logits: Tensor, expected: Tensor) -> float | None:
    """Return the difference of recomputed logits from the model's, as a share of the largest of these.

    None if rounding explains it.
    """
    difference = float((logits - expected).abs().amax() / expected.abs().amax().clamp_min(1e-6))
    return None if difference <= MISMATCH_TOLERANCE[expected.dtype] else difference


@contextmanager
def disable_gradients(model: Model) -> Iterator[None]:
    """Turn off the gradients of the model within the block; restore gradients and training mode afterwards."""
    before = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    training = [(module, module.training) for module in model.modules()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for weight, trained, gradient in before:
            weight.requires_grad_(trained)
            weight.grad = gradient
        for module, mode in training:
            module.training = mode
