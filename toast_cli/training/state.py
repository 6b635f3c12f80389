"""The training state that an exact resume needs: progress, optimizer, scaler and random numbers; without pickle."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from toast_cli.training.optimizer_state import pack_optimizer_state, unpack_optimizer_state
from toast_cli.utils.errors import ToastError


@dataclass
class BestEpoch:
    """The best epoch by validation score, where higher is better. The lower validation loss breaks a tie.

    `class_counts` are its counts by class on the validation split (see `ClassCounts.to_dict`), if the task has them.
    """

    epoch: int = 0
    score: list[float] = field(default_factory=lambda: [-sys.float_info.max] * 2)
    metrics: dict[str, Any] | None = None
    class_counts: dict[str, Any] | None = None

    def update(
        self, epoch: int, metrics: dict[str, Any], score: float, class_counts: dict[str, Any] | None = None
    ) -> bool:
        """Record an epoch if it is better than the best so far; return whether it is."""
        if [score, -metrics["loss"]] <= self.score:
            return False
        self.epoch, self.score, self.metrics = epoch, [score, -metrics["loss"]], metrics
        self.class_counts = class_counts
        return True


@dataclass
class TrainingProgress:
    """The number of finished epochs, of batches in the current epoch, and of optimizer steps in total."""

    epochs: int = 0
    batches: int = 0
    steps: int = 0


def pack_training_state(optimizer: Any, accelerator: Accelerator) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the plain values that `unpack_training_state` restores."""
    tensors, plain = pack_optimizer_state(optimizer)
    for process, states in enumerate(gather_object([_get_rng_states(accelerator)])):
        tensors |= {f"rng.{process}.{name}": rng for name, rng in states.items()}
    scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
    return tensors, {**plain, "scaler": scaler}


@contextmanager
def wrap_state_errors(checkpoints: Path) -> Iterator[None]:
    """Convert errors in unpacking a checkpoint's state, which another version of toast may have written.

    Raises:
        ToastError: the state has another structure.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ToastError(
            f"Cannot resume from the state in {checkpoints / 'last'}.",
            f"It was written by another version of toast: {type(error).__name__}, {error}.",
            "Resume with that version, or start the run again.",
            code="resume.incompatible-state",
        ) from error


def unpack_training_state(
    tensors: dict[str, Tensor], plain: dict[str, Any], optimizer: Any, accelerator: Accelerator
) -> None:
    """Restore what `pack_training_state` returned."""
    unpack_optimizer_state(tensors, plain, optimizer)
    own = f"rng.{accelerator.process_index}"
    torch.set_rng_state(tensors[f"{own}.cpu"])
    if f"{own}.cuda" in tensors and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[f"{own}.cuda"], accelerator.device)
    if plain["scaler"] is not None and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(plain["scaler"])


def _get_rng_states(accelerator: Accelerator) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return states
