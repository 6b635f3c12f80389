"""The focal loss of classification with a softmax.

Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 4: `-(1 - p)^gamma log p`, where p is the
probability of the labelled class. torchvision has it for independent classes only (`sigmoid_focal_loss`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from toast_cli.utils.constants import IGNORE_INDEX

SMALLEST_MISS = 1e-6
"""Bound of 1 - p from below: the gradient of its power is infinite at 0 if gamma is below 1."""


def sum_focal_loss(
    logits: Tensor, target: Tensor, gamma: float, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Return the focal loss summed over a batch. With gamma = 0, it is the cross-entropy.

    The loss of a soft target is the sum of the losses of its classes, each times its share.

    Args:
        logits: `[B, classes]`.
        target: Classes `[B]`, where `IGNORE_INDEX` has no loss, or shares of the classes `[B, classes]`.
        gamma: The exponent.
        weights: Weight of each class `[classes]`.
        smoothing: Share of the target that is spread over all classes.
    """
    classes = logits.shape[-1]
    if target.ndim == 1:
        labelled = target != IGNORE_INDEX
        logits, target = logits[labelled], F.one_hot(target[labelled], classes)
    target = target * (1 - smoothing) + smoothing / classes
    log_probabilities = logits.log_softmax(-1)
    misses = (-torch.expm1(log_probabilities)).clamp_min(SMALLEST_MISS)
    terms = -target * misses**gamma * log_probabilities
    return (terms if weights is None else terms * weights).sum()
