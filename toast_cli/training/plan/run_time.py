"""The time that a run will take, from a few passes before its first step. They change neither weights nor results."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device

from toast_cli.data.base import BatchLoader
from toast_cli.model.model import Model
from toast_cli.training.optimization import count_total_steps
from toast_cli.training.session import Session
from toast_cli.training.step import TrainingStep

FEWEST_STEPS = 200
"""Optimizer steps from which a run is worth an estimate: it takes the time of about three of them."""
TIMED_BATCHES = 3
"""Batches of training that are computed, of which the first is not timed: it allocates memory."""


def estimate_run_time(session: Session, step: TrainingStep, train: BatchLoader) -> float | None:
    """Return the seconds that training, validation and test will take, without those of writing checkpoints.

    Return None for a short run, and where a pass before the first step would not be like those in training: with
    several processes, a sharded model, or a cache of the first pass.
    """
    training, accelerator = session.recipe.training, session.accelerator
    steps = count_total_steps(training, -(-len(train) // training.accumulate))
    if steps < FEWEST_STEPS or training.cache or training.shard or accelerator.num_processes > 1:
        return None
    with _keep_state(session.model):
        training_seconds, evaluation_seconds = _time_passes(session, step, train)
    epochs = steps * training.accumulate / len(train)
    validations = math.ceil(epochs / training.validate_every)
    batches = {name: -(-len(split) // session.batch_size) for name, split in session.data.splits.items()}
    evaluated = validations * batches.get("val", 0) + (batches.get("test", 0) if session.recipe.test else 0)
    return steps * training.accumulate * training_seconds + evaluated * evaluation_seconds


def _time_passes(session: Session, step: TrainingStep, train: BatchLoader) -> tuple[float, float]:
    """Return the seconds of a batch in training and in evaluation, both with the wait for the batch."""
    accelerator, objective = session.accelerator, session.model.objective
    waits, computations = list[float](), list[float]()
    batches = iter(train)
    session.model.train()
    for _ in range(min(TIMED_BATCHES, len(train))):
        started = time.perf_counter()
        batch = send_to_device(next(batches), accelerator.device)
        waits.append(time.perf_counter() - started)
        with accelerator.autocast():
            loss = step(batch).loss
        accelerator.backward(loss / max(objective.count(batch), 1))
        _synchronize(accelerator.device)
        computations.append(time.perf_counter() - started - waits[-1])
    session.model.eval()
    started = time.perf_counter()
    with torch.no_grad(), accelerator.autocast():
        objective.predict(session.model, batch)
        _synchronize(accelerator.device)
    share = session.batch_size / session.recipe.training.batch_size
    return min(waits) + min(computations), (min(waits) + time.perf_counter() - started) * share


@contextmanager
def _keep_state(model: Model) -> Iterator[None]:
    """Restore random states, buffers, gradients and the mode of the model after the block."""
    mode, buffers = model.training, {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng():
        yield
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    model.zero_grad(set_to_none=True)
    model.train(mode)


def _synchronize(device: torch.device) -> Any:
    return torch.cuda.synchronize(device) if device.type == "cuda" else None
