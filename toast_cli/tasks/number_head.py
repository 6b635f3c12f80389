"""The head of regression: a linear layer whose outputs are in the units of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class NumberHead(nn.Linear):
    """A linear layer that predicts standardized numbers, and converts them to the units of the data.

    Weights are normal with standard deviation 0.02 and the bias is zero, so an untrained head predicts near the mean.

    Args:
        width: Channels of the features.
        numbers: Number of outputs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__(width, numbers)
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("std", torch.ones(numbers))

    def fit(self, numbers: Sequence[Any]) -> None:
        """Set mean and standard deviation to those of the numbers `[n, outputs]` of the training split.

        Numbers that are all equal keep a standard deviation of 1.
        """
        values = torch.tensor(numbers, dtype=torch.float64)
        std = values.std(0, correction=0)
        self.mean.copy_(values.mean(0))
        self.std.copy_(std.where(std > 0, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Return the numbers `[B, outputs]` of features `[B, width]`, in float32, as they may be large."""
        return super().forward(features).float() * self.std.float() + self.mean.float()

    def standardize(self, numbers: Tensor) -> Tensor:
        """Return numbers in standard deviations from the mean of the training split."""
        return (numbers.float() - self.mean) / self.std
