"""Optimizer and learning-rate schedule, both timm's."""

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
"""Fewer optimizer steps than this in a whole run are remarked upon."""


def check_optimizer(training: TrainingOptions) -> None:
    """Refuse a name that is no optimizer, before anything is written.

    Raises:
        UsageError: timm knows no such optimizer.
    """
    if training.optimizer not in list_optimizers():
        raise UsageError(
            f"There is no optimizer '{training.optimizer}' (training.optimizer).",
            what_to_do=did_you_mean(training.optimizer, list_optimizers()),
            code="training.unknown-optimizer",
        )
    if training.optimizer in {"sgd", "nesterov"} and training.momentum == 0:
        raise UsageError(
            f"The optimizer '{training.optimizer}' is timm's, with Nesterov momentum, which cannot be zero.",
            what_to_do="Use training.optimizer=momentum for plain SGD, whose training.momentum may be 0.",
            code="training.invalid-momentum",
        )


def make_optimizer(model: nn.Module, training: TrainingOptions) -> Optimizer:
    """Build an optimizer over what is trained; vectors (biases, norms, xi) get no weight decay."""
    return create_optimizer_v2(
        model if training.head_lr is None else make_parameter_groups(model, training),
        opt=training.optimizer,
        lr=training.lr,
        weight_decay=training.weight_decay,
        momentum=training.momentum,
        filter_bias_and_bn=True,
    )


def make_parameter_groups(model: nn.Module, training: TrainingOptions) -> list[dict[str, Any]]:
    """Group what is trained by weight decay and by learning rate; timm's schedules multiply by a group's `lr_scale`."""
    assert training.head_lr is not None
    scale = training.head_lr / training.lr
    of_head = {id(weight) for weight in model.get_submodule("head").parameters()}
    groups = []
    for group in param_groups_weight_decay(model, training.weight_decay):
        head = [weight for weight in group["params"] if id(weight) in of_head]
        rest = [weight for weight in group["params"] if id(weight) not in of_head]
        groups += [{**group, "params": rest}] if rest else []
        groups += [{**group, "params": head, "lr_scale": scale}] if head else []
    return groups


def count_warmup_steps(training: TrainingOptions, steps_per_epoch: int) -> int:
    """Steps of linear warm-up: as asked for, or a tenth of the run where that would take all of it."""
    asked, steps = round(training.warmup_epochs * steps_per_epoch), training.epochs * steps_per_epoch
    return asked if asked < steps else steps // 10


def count_cooldown_steps(training: TrainingOptions, steps_per_epoch: int) -> int:
    """Steps at the lowest rate: as asked for, or a tenth of the run where nothing would be left between the two."""
    asked, steps = round(training.cooldown_epochs * steps_per_epoch), training.epochs * steps_per_epoch
    return asked if asked + count_warmup_steps(training, steps_per_epoch) < steps else steps // 10


def _format_epochs(number: float) -> str:
    return f"{number:g} epoch" if number == 1 else f"{number:g} epochs"


def count_total_steps(training: TrainingOptions, steps_per_epoch: int) -> int:
    """Count the optimizer steps of a whole run, early stopping aside."""
    steps = training.epochs * steps_per_epoch
    return steps if training.max_steps is None else min(steps, training.max_steps)


def describe_schedule(training: TrainingOptions, batches: int) -> list[str]:
    """What a user should know of a schedule before it runs, with so many batches an epoch."""
    steps_per_epoch = -(-batches // training.accumulate)
    steps = training.epochs * steps_per_epoch
    notes = [f"{steps:,} optimizer steps, {steps_per_epoch:,} an epoch"]
    if count_total_steps(training, steps_per_epoch) < steps:
        notes.append(f"Training ends after {training.max_steps:,} of them (training.max_steps).")
    if training.warmup_epochs * steps_per_epoch >= steps and count_warmup_steps(training, steps_per_epoch) < steps:
        notes.append(
            f"A warm-up of {_format_epochs(training.warmup_epochs)} does not fit into {training.epochs}: "
            "a tenth of the run warms up instead."
        )
    if count_cooldown_steps(training, steps_per_epoch) < round(training.cooldown_epochs * steps_per_epoch):
        notes.append(
            f"A cool-down of {_format_epochs(training.cooldown_epochs)} does not fit into {training.epochs}: "
            "a tenth of the run cools down instead."
        )
    if steps < MIN_RECOMMENDED_STEPS:
        notes.append(
            "So few steps change little: raise training.epochs, or lower training.batch_size or training.accumulate."
        )
    return notes


def make_scheduler(optimizer: Optimizer, training: TrainingOptions, steps_per_epoch: int) -> Scheduler:
    """Linear warm-up, then cosine or poly to `min_lr` or a constant rate; call `step_update(step)` before each step."""
    warmup = count_warmup_steps(training, steps_per_epoch)
    shared = {
        # Two at least: a run of one step takes the first of them, and timm warns of a schedule of one.
        "t_initial": max(2, training.epochs * steps_per_epoch - count_cooldown_steps(training, steps_per_epoch)),
        # A cosine between equal ends is the constant schedule, with the same warm-up.
        "lr_min": training.lr if training.schedule == "constant" else training.min_lr,
        "warmup_t": warmup,
        "warmup_lr_init": training.lr / (warmup + 1),
        "t_in_epochs": False,
    }
    if training.schedule == "poly":
        return PolyLRScheduler(optimizer, power=training.poly_power, **shared)
    return CosineLRScheduler(optimizer, **shared)
