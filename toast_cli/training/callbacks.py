"""Functions of a user that training calls after every step and every epoch, and that can stop it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toast_cli.model.model import Model


@dataclass
class _StopRequest:
    asked: bool = False


@dataclass(frozen=True)
class StepInfo:
    """An optimizer step that was taken.

    Attributes:
        run: The run folder.
        model: The model in training, an `nn.Module` from prepared inputs to logits.
        step: Number of steps taken so far, in all epochs.
        steps: Number of steps that the run will take at most.
        epoch: The current epoch, counted from 1.
        epochs: Number of epochs that the run will take at most.
        loss: Mean training loss of the step, over all processes.
        lr: Learning rate of the step.
        metrics: Training metrics of the epoch so far, of this process.
    """

    run: Path
    model: Model
    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    lr: float
    metrics: dict[str, Any]
    _request: _StopRequest = field(default_factory=_StopRequest, repr=False)

    def stop(self) -> None:
        """End training after this step. The epoch so far is validated, and the best epoch is tested as usual."""
        self._request.asked = True


@dataclass(frozen=True)
class EpochInfo:
    """An epoch that was trained, validated if it was due, and saved.

    Attributes:
        run: The run folder.
        model: The model in training, an `nn.Module` from prepared inputs to logits.
        epoch: The epoch, counted from 1.
        epochs: Number of epochs that the run will take at most.
        step: Number of steps taken so far.
        train: Training metrics of the epoch, over all processes.
        validation: Validation metrics; None if the epoch was not validated.
        best: Whether it is the best epoch so far, which the run keeps.
    """

    run: Path
    model: Model
    epoch: int
    epochs: int
    step: int
    train: dict[str, Any]
    validation: dict[str, Any] | None
    best: bool
    _request: _StopRequest = field(default_factory=_StopRequest, repr=False)

    def stop(self) -> None:
        """End training after this epoch, which is validated if it was not. The best epoch is tested as usual."""
        self._request.asked = True


@dataclass
class Callbacks:
    """A user's functions. Every process calls its own; if one of them stops training, all processes stop."""

    on_step: Callable[[StepInfo], Any] | None = None
    on_epoch: Callable[[EpochInfo], Any] | None = None

    def after_step(self, info: StepInfo) -> bool:
        """Call `on_step`; return whether it asked to stop."""
        if self.on_step is not None:
            self.on_step(info)
        return info._request.asked

    def after_epoch(self, info: EpochInfo) -> bool:
        """Call `on_epoch`; return whether it asked to stop."""
        if self.on_epoch is not None:
            self.on_epoch(info)
        return info._request.asked
