"""A comparison of methods before a run: trained parameters, FLOPs, memory, time, and which fit into a given memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from toast_cli.recipe.schema import Recipe
from toast_cli.training.plan.memory import MemoryByBatchSize, estimate_memory_by_batch_size
from toast_cli.training.plan.throughput import measure_time_per_sample
from toast_cli.training.session import Session, prepare_session
from toast_cli.utils.errors import ToastError, UsageError

MEMORY_BATCH_SIZES = (1, 4, 16, 64, 256)
"""Batch sizes for which memory is reported."""
MAX_TIMED_BATCH_SIZE = 32
"""Largest batch size that is timed: larger ones hardly change the time per sample, and fit on fewer machines."""

METHOD_VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "TOAST": ("toast", ()),
    "TOAST, early": ("toast", ("method.feedback=early",)),
    "TOAST, late": ("toast", ("method.feedback=late",)),
    "TOAST, cached": ("toast", ("training.cache=true",)),
    "TOAST-Lite": ("toast-lite", ()),
    "TOAST-Lite, cached": ("toast-lite", ("training.cache=true",)),
    "linear": ("linear", ()),
    "lora": ("lora", ()),
    "vpt": ("vpt", ()),
    "full": ("full", ()),
}
"""The compared variants, each a method and its recipe fields."""


@dataclass(frozen=True)
class MethodCost:
    """The cost of one method variant on a backbone and data set.

    `memory` is in bytes by batch size, and `largest` is the largest batch size that fits. `seconds_per_epoch` is
    measured on this device, and None if the device has too little memory.
    """

    way: str
    trained: int
    flops: int
    flops_plain: int
    memory: dict[int, int]
    batch_size: int
    largest: int
    seconds_per_epoch: float | None

    @property
    def fits(self) -> bool:
        """Return whether at least one sample fits."""
        return self.largest > 0

    @property
    def accumulate(self) -> int:
        """Return the forward passes per step that give the recipe's batch size with batches that fit."""
        return -(-self.batch_size // max(self.largest, 1))


@dataclass(frozen=True)
class UnsupportedMethod:
    """A method variant that the backbone or the data set does not support."""

    way: str
    why: str


def estimate_method_costs(
    recipe_of: Callable[[str, tuple[str, ...]], Recipe],
    memory: int,
    tell: Callable[[str], object],
    others: Iterable[str] = (),
) -> Iterator[MethodCost | UnsupportedMethod]:
    """Yield the cost of each method variant.

    Args:
        recipe_of: `recipe_of(method, overrides)` returns the recipe of a variant.
        memory: the memory to fit into, in bytes.
        tell: called with a message before each variant is measured.
        others: further methods to measure with their default options.

    Raises:
        ToastError: the first variant fails, because the data set or the backbone cannot be opened.
    """
    variants = METHOD_VARIANTS | {name: (name, ()) for name in others}
    for number, (way, (method, fields)) in enumerate(variants.items()):
        tell(f"Measuring {way} …")
        try:
            recipe = recipe_of(method, (*fields, f"training.eval_batch_size={MAX_TIMED_BATCH_SIZE}"))
            started = time.perf_counter()
            session = prepare_session(recipe, place=False)
            yield _estimate_method_cost(way, session, memory, time.perf_counter() - started)
        except ToastError as error:
            if number == 0:
                raise
            yield UnsupportedMethod(way, error.what)


def _estimate_method_cost(way: str, session: Session, memory: int, before: float) -> MethodCost:
    training = session.recipe.training
    sizes = session.measure_model_sizes()
    step_memory: MemoryByBatchSize = estimate_memory_by_batch_size(
        session.model, training, next(iter(session.make_loader("train", train=True))), session.accelerator
    )
    session.move_to_device()
    largest = step_memory.find_largest_batch_size(memory)
    timed = max(1, min(training.batch_size, largest, MAX_TIMED_BATCH_SIZE))
    session.recipe = session.recipe.model_copy(update={"training": training.model_copy(update={"batch_size": timed})})
    try:
        seconds = measure_time_per_sample(session, before).estimate_epoch_seconds(len(session.data.splits["train"]))
    except torch.OutOfMemoryError:
        seconds = None
    return MethodCost(
        way,
        sizes["trained_parameters"],
        sizes["flops"],
        sizes["flops_plain"],
        {size: step_memory.estimate(size).total for size in MEMORY_BATCH_SIZES},
        training.batch_size,
        largest,
        seconds,
    )


def parse_memory(text: str) -> int:
    """Return the bytes of an amount such as `24GB`, `24GiB` or `800 MB`.

    Raises:
        UsageError: the text is not such an amount.
    """
    units: dict[str, Any] = {"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
    units |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kKMGT]i?B)", text.strip())
    if match is None or match[2] not in units or float(match[1]) == 0:
        raise UsageError(
            f"Expected an amount of memory, got '{text}'.",
            what_to_do="Write it as in --memory 24GB.",
            code="cli.invalid-value",
        )
    return int(float(match[1]) * units[match[2]])
