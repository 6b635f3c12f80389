"""Optimizer and learning-rate schedule, both timm's."""

from __future__ import annotations

from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from toast_cli.errors import UsageError, did_you_mean
from toast_cli.recipe.schema import TrainingOptions


def check_optimizer(training: TrainingOptions) -> None:
    """Refuse a name that is no optimizer, before anything is written.

    Raises:
        UsageError: timm knows no such optimizer.
    """
    if training.optimizer not in list_optimizers():
        raise UsageError(
            f"There is no optimizer '{training.optimizer}' (training.optimizer).",
            what_to_do=did_you_mean(training.optimizer, list_optimizers()),
        )


def make_optimizer(model: nn.Module, training: TrainingOptions) -> Optimizer:
    """An optimizer over what is trained; weight decay spares vectors (biases, norms, xi)."""
    return create_optimizer_v2(
        model,
        opt=training.optimizer,
        lr=training.lr,
        weight_decay=training.weight_decay,
        momentum=training.momentum,
        filter_bias_and_bn=True,
    )


def make_schedule(optimizer: Optimizer, training: TrainingOptions, steps_per_epoch: int) -> CosineLRScheduler:
    """Linear warm-up, then cosine to zero or a constant rate; call `step_update(step)` before each step."""
    warmup = round(training.warmup_epochs * steps_per_epoch)
    return CosineLRScheduler(
        optimizer,
        t_initial=training.epochs * steps_per_epoch,
        # A cosine between equal ends is the constant schedule, with the same warm-up.
        lr_min=training.lr if training.schedule == "constant" else 0.0,
        warmup_t=warmup,
        warmup_lr_init=training.lr / (warmup + 1),
        t_in_epochs=False,
    )
