"""The area under the ROC curve of a map as a classifier of object pixels, as a registered metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toast_cli.tasks.base import Metric

if TYPE_CHECKING:
    from torch import Tensor


def roc_auc(map: Tensor, mask: Tensor) -> Tensor:
    """Return the area under the ROC curve of a map as a classifier of object pixels, `[B]`; NaN without object pixels.

    This is the probability that a random pixel on the object has a larger value than a random pixel outside it, where
    ties count half. The value of a cell applies to all of its pixels.
    """
    import torch
    from torch.nn import functional as F

    from toast_cli.attention.metrics import compute_mask_coverage, is_zero_map

    value, on = map.flatten(1).double(), compute_mask_coverage(mask, map.shape).flatten(1).double()
    ascending, order = value.sort(1)
    outside = F.pad((1 - on).gather(1, order).cumsum(1), (1, 0))
    below = outside.gather(1, torch.searchsorted(ascending, value))
    up_to = outside.gather(1, torch.searchsorted(ascending, value, right=True))
    pairs = (on * (below + up_to) / 2).sum(1)
    return (pairs / (on.sum(1) * outside[:, -1])).float().masked_fill(is_zero_map(map), torch.nan)


METRIC = Metric(
    "AUC against object",
    lambda classes: roc_auc,
    needs="attention",
    meaning="area under the ROC curve as a classifier of object pixels",
)
