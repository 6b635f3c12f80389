"""Test-time flips: the mean of the scores of an image and of its mirror image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from toast_cli.model.model import Model
from toast_cli.tasks.base import Objective
from toast_cli.utils.errors import UsageError

DESCRIPTION = "mean of the probabilities of each image and its mirror image"


def require_mirrorable(objective: Objective) -> None:
    """Check that a model has scores of images, which can be averaged.

    Raises:
        UsageError: it answers texts, or its outputs are not scores of classes.
    """
    if objective.target == "text" or not objective.class_scores:
        raise UsageError(
            "Test-time flips need a model that scores images.",
            "This model answers texts."
            if objective.target == "text"
            else "The outputs of this task are not scores of classes.",
            "Leave --tta out.",
            code="task.cannot-flip",
        )


def average_with_mirror(model: Model, batch: Mapping[str, Any], outputs: Tensor) -> Tensor:
    """Return the outputs of a batch averaged with those of its mirror images, by their scores.

    The outputs of a model that labels pixels are mirrored back. `outputs` are those of the batch itself.
    """
    objective, extents = model.objective, batch.get("extent")
    mirrored = objective.predict(model, {**batch, "image": mirror_images(batch["image"], extents)})
    return objective.average_outputs([outputs, mirror_images(mirrored, extents) if objective.dense else mirrored])


def mirror_images(images: Tensor, extents: Tensor | None = None) -> Tensor:
    """Mirror images `[B, C, H, W]` left to right, each within its extent (height, width); padding stays in place."""
    if extents is None:
        return images.flip(-1)
    mirrored = images.clone()
    for image, target, (height, width) in zip(images, mirrored, extents.tolist(), strict=True):
        target[:, :height, :width] = image[:, :height, :width].flip(-1)
    return mirrored
