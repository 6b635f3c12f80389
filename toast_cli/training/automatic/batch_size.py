"""The largest batch size that fits (`training.batch_size=auto`): by trial on a GPU, by an estimate on a CPU.

A CPU raises no error that could be caught: the operating system ends a process that needs too much memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import gather_object, get_int_from_env, release_memory, send_to_device
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from toast_cli.data.base import BatchLoader
from toast_cli.training.distributed.collectives import sum_across_processes
from toast_cli.training.ema import ExponentialMovingAverage
from toast_cli.training.optimization import make_optimizer
from toast_cli.training.plan.memory import estimate_memory_by_batch_size, get_free_memory
from toast_cli.training.session import Session
from toast_cli.training.step import TrainingStep
from toast_cli.utils.errors import ToastError

LARGEST_ON_GPU, LARGEST_ON_CPU = 1024, 64
"""Largest batch sizes that are chosen. A CPU is not faster with more."""
USABLE_SHARE = 0.9
"""Share of the free memory that a step may use: kernels and the allocator need more than the tensors."""
TRIAL_STEPS = 2
"""Steps per trial. The first one allocates the state of the optimizer, and the second one runs beside it."""


def find_batch_size(session: Session, make_step: Callable[[Session, BatchLoader], TrainingStep]) -> int:
    """Return the largest power of two that fits, over all processes together. The session cannot be used afterwards.

    It is at most the number of training samples. Every process returns the same.

    Raises:
        ToastError: not even the smallest batch fits.
    """
    accelerator, processes = session.accelerator, session.accelerator.num_processes
    smallest = 1 << (processes - 1).bit_length()
    train = session.make_loader("train", train=True)
    batch = _pad_to_longest(next(iter(train)), train)
    samples = len(session.data.splits["train"])
    if accelerator.device.type == "cpu":
        size = _round_down(min(LARGEST_ON_CPU, samples, _estimate_largest(session, batch)))
    else:
        session.move_to_device()
        trial = _make_trial(session, make_step(session, train), batch)
        size = double_while_fitting(trial, smallest, min(LARGEST_ON_GPU, samples))
    if size < smallest:
        raise ToastError(
            f"Not even a batch of {smallest} fits into the memory of {accelerator.device} (training.batch_size=auto).",
            what_to_do="Set training.checkpoint_gradients=true, use a smaller backbone or smaller images, or use "
            "several processes with training.shard=true. 'toast plan' compares the methods.",
            code="training.out-of-memory",
        )
    return size


def double_while_fitting(fits: Callable[[int], bool], smallest: int, highest: int) -> int:
    """Return the largest of `smallest`, twice that, and so on up to `highest` that fits; 0 if none does."""
    found, size = 0, smallest
    while size <= max(highest, smallest) and fits(size):
        found, size = size, 2 * size
    return found


def _round_down(size: int) -> int:
    """Return the largest power of two that is not larger than `size`; 0 for 0."""
    return 1 << (size.bit_length() - 1) if size > 0 else 0


def _estimate_largest(session: Session, batch: Mapping[str, Tensor]) -> int:
    """Return the largest batch size whose step fits into the free memory, shared by the processes of the machine."""
    free, training = get_free_memory(session.accelerator.device), session.recipe.training
    assert free is not None, "the free memory of a CPU is known"
    neighbours = max(get_int_from_env(["LOCAL_WORLD_SIZE", "WORLD_SIZE"], 1), 1)
    memory = estimate_memory_by_batch_size(session.model, training, _repeat_rows(batch, 2), session.accelerator)
    own = memory.find_largest_batch_size(int(USABLE_SHARE * free / neighbours) + memory.weights)  # they are loaded
    return min(gather_object([own])) * session.accelerator.num_processes


def _make_trial(session: Session, step: TrainingStep, batch: Mapping[str, Tensor]) -> Callable[[int], bool]:
    """Return a function that tries real training steps with a batch size, and whether they fit in every process."""
    accelerator, model, training = session.accelerator, session.model, session.recipe.training
    on_cuda, device, processes = accelerator.device.type == "cuda", accelerator.device, accelerator.num_processes
    model.train()
    free = (get_free_memory(device) or 0) + torch.cuda.memory_reserved(device) if on_cuda else 0

    def train(rows: int) -> None:
        optimizer = make_optimizer(model, training)
        average = None if training.ema is None else ExponentialMovingAverage(model, training.ema)
        samples = send_to_device(_repeat_rows(batch, rows), device)
        for _ in range(TRIAL_STEPS):
            with accelerator.autocast():
                loss = step(samples).loss / rows
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average is not None:
                average.update()

    def fits_here(size: int) -> bool:
        rows = -(-size // processes)
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        try:
            train(rows)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return False
        finally:
            model.zero_grad(set_to_none=True)
            release_memory()
        # Gradients of several processes are averaged in buffers as large as they are.
        buffers = sum(weight.nbytes for weight in model.get_trained_parameters().values()) if processes > 1 else 0
        return not on_cuda or torch.cuda.max_memory_allocated(device) + buffers <= USABLE_SHARE * free

    return lambda size: not sum_across_processes([float(not fits_here(size))], accelerator)[0]


def _repeat_rows(batch: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Return a batch of `rows` samples, made of those of another batch in turn."""
    return {name: tensor[torch.arange(rows) % len(tensor)] for name, tensor in batch.items()}


def _pad_to_longest(batch: Mapping[str, Any], loader: BatchLoader) -> dict[str, Tensor]:
    """Return a batch of texts with as many tokens as the longest text has; other batches are unchanged."""
    longest = getattr(loader, "longest", None)
    if longest is None:
        return dict(batch)
    return {
        name: tensor if tensor.dim() < 2 else tensor[:, torch.arange(longest) % tensor.shape[1]]
        for name, tensor in batch.items()
    }
