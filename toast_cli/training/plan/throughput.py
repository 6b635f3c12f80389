"""How fast a recipe trains here: a few steps, timed, decoding and moving included."""

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
"""Seconds after which no further step is begun."""
MAX_TIMED_STEPS = 5
"""Steps that are timed at most; one more goes before them, in which memory is had and kernels are chosen."""


@dataclass(frozen=True)
class TimePerSample:
    """Seconds for a sample while training and while measuring, and before the first one: opening, building."""

    train: float
    evaluate: float
    before: float = 0.0

    def epoch(self, train: int) -> float:
        """Seconds of one epoch over so many samples, validation left out."""
        return train * self.train

    def run(self, recipe: Recipe, samples: dict[str, int]) -> float:
        """Seconds of a whole run: every epoch trains and validates, and test is looked at once, if at all."""
        training = recipe.training
        epochs: float = training.epochs
        if training.max_steps is not None:
            steps_per_epoch = -(-samples["train"] // (training.batch_size * training.accumulate))
            epochs = min(epochs, training.max_steps / steps_per_epoch)
        validations = math.ceil(epochs / training.validate_every)
        training_seconds = epochs * self.epoch(samples["train"])
        validating = validations * samples.get("val", 0) * self.evaluate
        return (
            self.before + training_seconds + validating + (samples.get("test", 0) * self.evaluate if recipe.test else 0)
        )


def measure_time_per_sample(session: Session, before: float = 0.0) -> TimePerSample:
    """Time a few steps of training, then of measuring; the session's model is changed and of no more use."""
    return TimePerSample(_time_training(session), _time_evaluation(session), before)


def _time_training(session: Session) -> float:
    batches, accelerator = session.batches("train", train=True), session.accelerator
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
    # With a cache, the first epoch alone is that slow: the same batches again are what the others take.
    return _measure_seconds_per_sample(batches, train) if session.recipe.training.cache else seconds


def _time_evaluation(session: Session) -> float:
    split = next(name for name in ("val", "test", "train") if name in session.data.splits)
    shows = session.can_measure_attention(split)

    def look(batch: dict[str, Any]) -> None:
        evaluate_model(session.model, [batch], session.accelerator, with_attention=shows)

    return _measure_seconds_per_sample(session.batches(split, with_masks=shows), look)


def _measure_seconds_per_sample(batches: Any, do: Callable[[dict[str, Any]], None]) -> float:
    """Over the first few batches, fewer where they take long; the first is left out where there are others."""
    timed: list[tuple[float, int]] = []
    started = begun = time.perf_counter()
    for batch in islice(batches, MAX_TIMED_STEPS + 1):
        do(batch)
        now = time.perf_counter()
        timed.append((now - started, _get_batch_size(batch)))
        started = now
        if now - begun > MAX_TIMING_SECONDS:
            break
    counted = timed[1:] or timed
    return sum(seconds for seconds, _ in counted) / sum(size for _, size in counted)


def _get_batch_size(batch: dict[str, Any]) -> int:
    return len(next(iter(batch.values())))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
