"""The learning-rate range test (`training.lr=auto`) of Smith, Cyclical Learning Rates for Training Neural Networks.

The rate rises exponentially over a few steps of training, until the loss diverges. The suggestion is a fixed fraction
of the rate at which the smoothed loss is lowest: there, training is still fast, and no longer close to divergence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from accelerate.utils import send_to_device

from toast_cli.data.base import BatchLoader
from toast_cli.training.distributed.collectives import sum_across_processes
from toast_cli.training.optimization import make_optimizer
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import Session
from toast_cli.training.step import TrainingStep
from toast_cli.utils.errors import ToastError
from toast_cli.utils.formatting import format_csv

LOWEST_RATE, HIGHEST_RATE, RANGE_STEPS = 1e-6, 10.0, 70
"""Rates of the first and the last step, and the number of steps: ten per power of ten."""
SMOOTHING = 0.8
"""Decay of the moving average of the loss."""
DIVERGENCE = 4.0
"""The test ends when the smoothed loss is this many times its minimum."""
BASELINE_STEPS = 10
"""First steps, whose rates hardly change the weights: the mean of their losses is the loss to improve on."""
FRACTION = 0.1
"""The suggested rate, as a share of the rate with the lowest smoothed loss."""


@dataclass(frozen=True)
class LRRange:
    """The outcome of a range test: the loss of each step before its update, and its moving average, by rate."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def suggestion(self) -> float:
        """Return the suggested rate, rounded to two digits.

        Raises:
            ToastError: no rate lowers the loss.
        """
        later = range(BASELINE_STEPS, len(self.smoothed))
        lowest = min(later, key=self.smoothed.__getitem__, default=None)
        if lowest is None or self.smoothed[lowest] >= sum(self.losses[:BASELINE_STEPS]) / BASELINE_STEPS:
            raise ToastError(
                "The range test found no learning rate that lowers the loss (training.lr=auto).",
                "A model that was tuned before starts near its minimum, where no rate lowers the loss.",
                "Set training.lr to a number, for example a third of the rate in the recipe.",
                code="training.no-learning-rate",
            )
        return float(f"{FRACTION * self.rates[lowest]:.2g}")

    def format_csv(self) -> str:
        """Return the steps as CSV."""
        return format_csv([("lr", "loss", "smoothed_loss"), *zip(self.rates, self.losses, self.smoothed, strict=True)])


def measure_lr_range(session: Session, step: TrainingStep, train: BatchLoader, reporter: Reporter) -> LRRange:
    """Run the range test on a session, which cannot be used afterwards.

    The head has the same rate as all other weights, also if the run has a `head_lr`. A head with a rate of its own
    would lower the loss at every rate of the others.
    """
    accelerator, model, training = session.accelerator, session.model, session.recipe.training
    optimizer = accelerator.prepare(make_optimizer(model, training))
    forward = step if training.shard else accelerator.prepare(step)
    found, average, weight = LRRange([], [], []), 0.0, 0.0
    model.train()
    groups = _iterate_groups(train, training.accumulate)
    for number in reporter.track_progress(range(RANGE_STEPS), RANGE_STEPS, "learning-rate range test"):
        rate = LOWEST_RATE * (HIGHEST_RATE / LOWEST_RATE) ** (number / (RANGE_STEPS - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _train_step(session, forward, optimizer, next(groups))
        average, weight = SMOOTHING * average + (1 - SMOOTHING) * loss, SMOOTHING * weight + 1 - SMOOTHING
        if not math.isfinite(loss):
            break
        found.rates.append(rate)
        found.losses.append(loss)
        found.smoothed.append(average / weight)
        if found.smoothed[-1] > DIVERGENCE * min(found.smoothed):
            break
    return found


def _train_step(session: Session, forward: Any, optimizer: Any, group: list[Any]) -> float:
    """Run one optimizer step over a group of batches and return its mean loss, as the training loop does."""
    accelerator, objective = session.accelerator, session.model.objective
    batches = [send_to_device(batch, accelerator.device) for batch in group]
    total = sum_across_processes([float(sum(objective.count(batch) for batch in batches))], accelerator)[0]
    optimizer.zero_grad(set_to_none=True)
    value = 0.0
    for batch in batches:
        with accelerator.autocast():
            loss = forward(batch).loss / max(total, 1)
        value += sum_across_processes([loss.item()], accelerator)[0]
        accelerator.backward(loss * accelerator.num_processes)
    if session.recipe.training.clip_grad is not None:
        accelerator.clip_grad_norm_(session.model.parameters(), session.recipe.training.clip_grad)
    optimizer.step()
    return value


def _iterate_groups(train: BatchLoader, size: int) -> Iterator[list[Any]]:
    """Yield groups of batches, epoch after epoch."""

    def iterate_batches() -> Iterator[Any]:
        for epoch in count(1):
            train.set_epoch(epoch)
            yield from train

    batches = iterate_batches()
    while True:
        yield list(islice(batches, size))
