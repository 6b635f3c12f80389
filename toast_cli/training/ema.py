"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from toast_cli.model.model import Model
from toast_cli.utils.tensor_fingerprints import copy_tensors

EMA_PREFIX = "ema."
"""Prefix of the averaged weights' names in a checkpoint."""


class ExponentialMovingAverage:
    """An exponential moving average of a model's trained weights. Frozen weights are not copied."""

    def __init__(self, model: Model, decay: float) -> None:
        self._trained = model.get_trained_parameters()
        self._averaged = {name: weight.detach().clone() for name, weight in self._trained.items()}
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights; call after every optimizer step."""
        self._average(list(self._averaged.values()), [weight.detach() for weight in self._trained.values()], 1)

    @contextmanager
    def apply_to_model(self) -> Iterator[None]:
        """Give the model the averaged weights within the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def get_tensors(self) -> dict[str, Tensor]:
        """Return the averaged weights by name."""
        return self._averaged

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load averaged weights from a checkpoint."""
        copy_tensors(tensors, self._averaged)

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._trained.items():
            current = weight.detach().clone()
            weight.copy_(self._averaged[name])
            self._averaged[name].copy_(current)
