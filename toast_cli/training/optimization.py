"""The optimizer and the learning-rate schedule, both from timm."""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from toast_cli.recipe.schema import TrainingOptions
from toast_cli.utils.errors import UsageError, did_you_mean

MIN_RECOMMENDED_STEPS = 20
"""A run with fewer optimizer steps gets a warning."""


def check_optimizer(training: TrainingOptions) -> None:
    """Check the name and the momentum of the optimizer, before anything is written.

    Raises:
        UsageError: timm has no such optimizer, or the optimizer does not accept a momentum of 0.
    """
    if training.optimizer not in list_optimizers():
        raise UsageError(
            f"Unknown optimizer '{training.optimizer}' (training.optimizer).",
            what_to_do=did_you_mean(training.optimizer, list_optimizers()),
            code="training.unknown-optimizer",
        )
    if training.optimizer in {"sgd", "nesterov"} and training.momentum == 0:
        raise UsageError(
            f"The optimizer '{training.optimizer}' uses Nesterov momentum, which cannot be 0.",
            what_to_do="Use training.optimizer=momentum for plain SGD, whose training.momentum may be 0.",
            code="training.invalid-momentum",
        )


def make_optimizer(model: nn.Module, training: TrainingOptions) -> Optimizer:
    """Build the optimizer of the trained weights. Vectors (biases, norms, xi) have no weight decay."""
    return create_optimizer_v2(
        model if training.head_lr is None else make_parameter_groups(model, training),
        opt=training.optimizer,
        lr=training.lr,
        weight_decay=training.weight_decay,
        momentum=training.momentum,
        filter_bias_and_bn=True,
    )


def make_parameter_groups(model: nn.Module, training: TrainingOptions) -> list[dict[str, Any]]:
    """Group the trained weights by weight decay and learning rate.

    timm's schedules multiply the learning rate by the `lr_scale` of a group.
    """
    assert training.head_lr is not None
    scale = training.head_lr / training.lr
    head_ids = {id(weight) for weight in model.get_submodule("head").parameters()}
    groups = []
    for group in param_groups_weight_decay(model, training.weight_decay):
        head = [weight for weight in group["params"] if id(weight) in head_ids]
        rest = [weight for weight in group["params"] if id(weight) not in head_ids]
        groups += [{**group, "params": rest}] if rest else []
        groups += [{**group, "params": head, "lr_scale": scale}] if head else []
    return groups


def count_warmup_steps(training: TrainingOptions, steps_per_epoch: int) -> int:
    """Return the steps of linear warm-up: `warmup_epochs`, or a tenth of the run if that would fill all of it."""
    warmup, steps = round(training.warmup_epochs * steps_per_epoch), training.epochs * steps_per_epoch
    return warmup if warmup < steps else steps // 10


def count_cooldown_steps(training: TrainingOptions, steps_per_epoch: int) -> int:
    """Return the steps at the lowest rate: `cooldown_epochs`, or a tenth of the run if no other steps would be left."""
    cooldown, steps = round(training.cooldown_epochs * steps_per_epoch), training.epochs * steps_per_epoch
    return cooldown if cooldown + count_warmup_steps(training, steps_per_epoch) < steps else steps // 10


def _format_epochs(number: float) -> str:
    return f"{number:g} epoch" if number == 1 else f"{number:g} epochs"


def count_total_steps(training: TrainingOptions, steps_per_epoch: int) -> int:
    """Return the number of optimizer steps of a run, without early stopping."""
    steps = training.epochs * steps_per_epoch
    return steps if training.max_steps is None else min(steps, training.max_steps)


def describe_schedule(training: TrainingOptions, batches: int) -> list[str]:
    """Return notes on the schedule for the user; `batches` is the number of batches in an epoch."""
    steps_per_epoch = -(-batches // training.accumulate)
    steps = training.epochs * steps_per_epoch
    notes = [f"{steps:,} optimizer steps, {steps_per_epoch:,} per epoch"]
    if count_total_steps(training, steps_per_epoch) < steps:
        notes.append(f"Training stops after {training.max_steps:,} steps (training.max_steps).")
    if training.warmup_epochs * steps_per_epoch >= steps and count_warmup_steps(training, steps_per_epoch) < steps:
        notes.append(
            f"A warm-up of {_format_epochs(training.warmup_epochs)} does not fit into {training.epochs}: "
            "the warm-up takes a tenth of the run instead."
        )
    if count_cooldown_steps(training, steps_per_epoch) < round(training.cooldown_epochs * steps_per_epoch):
        notes.append(
            f"A cool-down of {_format_epochs(training.cooldown_epochs)} does not fit into {training.epochs}: "
            "the cool-down takes a tenth of the run instead."
        )
    if steps < MIN_RECOMMENDED_STEPS:
        notes.append(
            "So few steps change the weights little: raise training.epochs, or lower training.batch_size or "
            "training.accumulate."
        )
    return notes


def make_scheduler(optimizer: Optimizer, training: TrainingOptions, steps_per_epoch: int) -> Scheduler:
    """Build the schedule: linear warm-up, then cosine or polynomial decay to `min_lr`, or a constant rate.

    Call `step_update(step)` before each optimizer step.
    """
    warmup = count_warmup_steps(training, steps_per_epoch)
    shared = {
        # At least 2, because timm warns about a schedule of one step.
        "t_initial": max(2, training.epochs * steps_per_epoch - count_cooldown_steps(training, steps_per_epoch)),
        # A cosine between equal values is a constant schedule.
        "lr_min": training.lr if training.schedule == "constant" else training.min_lr,
        "warmup_t": warmup,
        "warmup_lr_init": training.lr / (warmup + 1),
        "t_in_epochs": False,
    }
    if training.schedule == "poly":
        return PolyLRScheduler(optimizer, power=training.poly_power, **shared)
    return CosineLRScheduler(optimizer, **shared)
