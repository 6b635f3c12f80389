"""The throughput of a recipe on this machine, measured over a few steps including decoding and transfer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate.utils import send_to_device

from toast_cli.recipe.schema import Recipe
from toast_cli.training.evaluate import evaluate_model
from toast_cli.training.optimization import make_optimizer
from toast_cli.training.session import Session
from toast_cli.training.tune import build_training_step

MAX_TIMING_SECONDS = 5.0
"""Seconds after which no further step is timed."""
MAX_TIMED_STEPS = 5
"""Largest number of timed steps, after one that allocates memory and selects kernels."""


@dataclass(frozen=True)
class TimePerSample:
    """Seconds per sample in training and evaluation, and seconds `before` the first one: opening data, building."""

    train: float
    evaluate: float
    before: float = 0.0

    def estimate_epoch_seconds(self, train: int) -> float:
        """Return the seconds of an epoch over `train` samples, without validation."""
        return train * self.train

    def estimate_run_seconds(self, recipe: Recipe, samples: dict[str, int]) -> float:
        """Return the seconds of a run: training, validation and, unless it is off, one evaluation of the test split."""
        training = recipe.training
        epochs: float = training.epochs
        if training.max_steps is not None:
            steps_per_epoch = -(-samples["train"] // (training.batch_size * training.accumulate))
            epochs = min(epochs, training.max_steps / steps_per_epoch)
        validations = math.ceil(epochs / training.validate_every)
        training_seconds = epochs * self.estimate_epoch_seconds(samples["train"])
        validating = validations * samples.get("val", 0) * self.evaluate
        return (
            self.before + training_seconds + validating + (samples.get("test", 0) * self.evaluate if recipe.test else 0)
        )


def measure_time_per_sample(session: Session, before: float = 0.0) -> TimePerSample:
    """Time a few steps of training and evaluation. The session's model is changed and must not be used afterwards."""
    return TimePerSample(_time_training(session), _time_evaluation(session), before)


def _time_training(session: Session) -> float:
    batches, accelerator = session.make_loader("train", train=True), session.accelerator
    step, _ = build_training_step(session, batches, None)
    optimizer = make_optimizer(session.model, session.recipe.training)
    session.model.train()

    def train(batch: dict[str, Any]) -> None:
        batch = send_to_device(batch, accelerator.device)
        with accelerator.autocast():
            loss = step(batch).loss
        accelerator.backward(loss / max(session.model.objective.count(batch), 1))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _synchronize(accelerator.device)

    seconds = _measure_seconds_per_sample(batches, train)
    # With a cache, only the first epoch is that slow, so time the same batches again.
    return _measure_seconds_per_sample(batches, train) if session.recipe.training.cache else seconds


def _time_evaluation(session: Session) -> float:
    split = next(name for name in ("val", "test", "train") if name in session.data.splits)
    with_attention = session.can_measure_attention(split)

    def evaluate(batch: dict[str, Any]) -> None:
        evaluate_model(session.model, [batch], session.accelerator, with_attention=with_attention)

    return _measure_seconds_per_sample(session.make_loader(split, with_masks=with_attention), evaluate)


def _measure_seconds_per_sample(batches: Any, do: Callable[[dict[str, Any]], None]) -> float:
    """Time the first few batches, without the first one if there are others; stop early if they are slow."""
    timed: list[tuple[float, int]] = []
    started = first = time.perf_counter()
    for batch in islice(batches, MAX_TIMED_STEPS + 1):
        do(batch)
        now = time.perf_counter()
        timed.append((now - started, _get_batch_size(batch)))
        started = now
        if now - first > MAX_TIMING_SECONDS:
            break
    counted = timed[1:] or timed
    return sum(seconds for seconds, _ in counted) / sum(size for _, size in counted)


def _get_batch_size(batch: dict[str, Any]) -> int:
    return len(next(iter(batch.values())))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
