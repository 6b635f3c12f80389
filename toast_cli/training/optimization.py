"""The optimizer and the learning-rate schedule, both from timm."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from toast_cli.recipe.schema import TrainingOptions
from toast_cli.training.optimizer_state import pack_optimizer_state, unpack_optimizer_state
from toast_cli.utils.errors import UsageError
from toast_cli.utils.tensor_fingerprints import gather_full_tensors

SAMPLED_STEPS = 10_000
"""Steps of a schedule that are enough for the sum of its rates."""
MIN_RECOMMENDED_STEPS = 20
"""A run with fewer optimizer steps gets a warning."""


def check_optimizer(
    training: TrainingOptions,
    device: torch.device | None = None,
    shard: Callable[[nn.Module], None] | None = None,
) -> None:
    """Check that the optimizer trains, and that its state can be saved and restored, before anything is written.

    A small model on `device` (default: the CPU), sharded by `shard`, is trained for a step before and after its state
    goes through a checkpoint. A rate that is still to be chosen is not compared with `min_lr`.

    Raises:
        UsageError: timm has no such optimizer, it does not accept the momentum, it needs second derivatives, or it does
            not work here, for example without CUDA; or the lowest learning rate exceeds the peak.
    """
    name = training.optimizer
    if isinstance(training.lr, str):
        rate = max(TrainingOptions.model_fields["lr"].default, training.min_lr)
        training = training.model_copy(update={"lr": rate})
    if name not in list_optimizers():
        raise UsageError(
            f"Unknown optimizer '{name}' (training.optimizer).",
            what_to_do=_suggest_optimizer(training, device, shard),
            code="training.unknown-optimizer",
        )
    if name in {"sgd", "nesterov"} and training.momentum == 0:
        raise UsageError(
            f"The optimizer '{name}' uses Nesterov momentum, which cannot be 0.",
            what_to_do="Use training.optimizer=momentum for plain SGD, whose training.momentum may be 0.",
            code="training.invalid-momentum",
        )
    if training.schedule != "constant" and training.min_lr > training.lr:
        raise UsageError(
            f"The learning rate would rise from training.lr={training.lr:g} to training.min_lr={training.min_lr:g}.",
            what_to_do="Lower training.min_lr, or use training.schedule=constant.",
            code="training.rising-rate",
        )
    if get_optimizer_info(name).second_order:
        raise _make_unsupported_error(name, "It needs second derivatives, which toast does not compute.")
    device = device or torch.device("cpu")
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            _rehearse_optimizer(training, device, shard)
    except Exception as error:  # optimizers raise arbitrary exceptions, most of them AssertionError or ImportError
        why = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        where = f"{device.type}{' with training.shard' if shard else ''}"
        raise _make_unsupported_error(name, f"A trial step on {where} failed: {why}.") from error


def _suggest_optimizer(
    training: TrainingOptions, device: torch.device | None, shard: Callable[[nn.Module], None] | None
) -> str:
    """Return what to do about an unknown optimizer: the nearest name that can be used here, if there is one."""
    for name in get_close_matches(training.optimizer, list_optimizers(), n=5, cutoff=0.5):
        with suppress(UsageError):
            check_optimizer(training.model_copy(update={"optimizer": name}), device, shard)
            return f"Did you mean '{name}'?"
    return "Use a name that timm.optim.list_optimizers() returns, such as momentum or adamw."


def _rehearse_optimizer(
    training: TrainingOptions, device: torch.device, shard: Callable[[nn.Module], None] | None
) -> None:
    """Train a small model for a step, save and restore the optimizer's state as a checkpoint does, and train on."""
    layers = {"body": nn.Conv2d(2, 3, 2), "head": nn.Linear(64, 65)}
    model = nn.Sequential(OrderedDict(layers)).to(device)
    if shard is not None:
        shard(model)

    def prepare() -> Optimizer:
        optimizer = make_optimizer(model, training)
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        return optimizer

    first, second = prepare(), prepare()
    first.step()
    tensors, plain = pack_optimizer_state(first)
    unpack_optimizer_state(gather_full_tensors(tensors), json.loads(json.dumps(plain)), second)
    second.step()


def _make_unsupported_error(name: str, why: str) -> UsageError:
    return UsageError(
        f"The optimizer '{name}' cannot be used here (training.optimizer).",
        why,
        "Use another one, such as momentum or adamw.",
        code="training.unsupported-optimizer",
    )


def make_optimizer(model: nn.Module, training: TrainingOptions) -> Optimizer:
    """Build the optimizer of the trained weights. Vectors (biases, norms, xi) have no weight decay.

    An optimizer that compiles its own step (Kron) runs uncompiled: compiling needs a C++ compiler and takes minutes,
    once per shape of a weight.
    """
    optimizer: Optimizer = create_optimizer_v2(
        model if training.head_lr is None else make_parameter_groups(model, training),
        opt=training.optimizer,
        lr=training.lr,
        weight_decay=training.weight_decay,
        momentum=training.momentum,
        filter_bias_and_bn=True,
    )
    optimizer.step = torch.compiler.set_stance("force_eager")(optimizer.step)  # type: ignore[method-assign]
    return optimizer


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
            f"The recipe's warm-up of {_format_epochs(training.warmup_epochs)} does not fit into {training.epochs} "
            "epochs: it takes a tenth of the run instead."
        )
    if count_cooldown_steps(training, steps_per_epoch) < round(training.cooldown_epochs * steps_per_epoch):
        notes.append(
            f"The recipe's cool-down of {_format_epochs(training.cooldown_epochs)} does not fit into {training.epochs} "
            "epochs: it takes a tenth of the run instead."
        )
    if steps < MIN_RECOMMENDED_STEPS:
        notes.append(
            "These are few steps. If the loss is still high at the end, raise training.epochs, or lower "
            "training.batch_size or training.accumulate."
        )
    return notes


def compute_learning_rate(training: TrainingOptions, steps_per_epoch: int, step: int) -> float:
    """Return the learning rate of the optimizer step after `step` steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=training.lr)
    make_scheduler(optimizer, training, steps_per_epoch).step_update(step)
    return float(optimizer.param_groups[0]["lr"])


def sum_learning_rates(training: TrainingOptions, steps_per_epoch: int, steps: Sequence[int]) -> list[float]:
    """Return the sum of the learning rates of all optimizer steps up to each of `steps`, which are in order."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=training.lr)
    scheduler = make_scheduler(optimizer, training, steps_per_epoch)
    stride = max(-(-steps[-1] // SAMPLED_STEPS), 1)  # in a long run, every n-th rate stands for n steps
    sums = [0.0]
    for step in range(0, steps[-1], stride):
        scheduler.step_update(step)
        sums.append(sums[-1] + optimizer.param_groups[0]["lr"] * min(stride, steps[-1] - step))
    return [sums[-(-step // stride)] for step in steps]


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
