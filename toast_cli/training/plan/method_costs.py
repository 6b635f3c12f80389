"""Advice before a run: what each way of adapting trains, costs, needs and takes, and which fit into a memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from toast_cli.recipe.schema import Recipe
from toast_cli.training.plan.memory import MemoryByBatchSize, estimate_memory_by_batch_size
from toast_cli.training.plan.throughput import measure_time_per_sample
from toast_cli.training.session import Session, prepare_session
from toast_cli.utils.errors import ToastError, UsageError

MEMORY_BATCH_SIZES = (1, 4, 16, 64, 256)
"""Batch sizes whose memory is told."""
MAX_TIMED_BATCH_SIZE = 32
"""Batch size that is timed at most: more changes the time of a sample little, and fits into fewer machines."""

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
"""Ways of adapting that are compared: method, and the fields that make it this one."""


@dataclass(frozen=True)
class MethodCost:
    """One way of adapting on this backbone and data.

    `memory` is in bytes by batch size, `largest` the largest batch that fits, `seconds_per_epoch` are this device's,
    or None where it has too little memory itself.
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
        """Whether one sample at least fits."""
        return self.largest > 0

    @property
    def accumulate(self) -> int:
        """Forward passes a step that make the recipe's batch of what fits."""
        return -(-self.batch_size // max(self.largest, 1))


@dataclass(frozen=True)
class UnsupportedMethod:
    """A way of adapting that this backbone or data does not take."""

    way: str
    why: str


def estimate_method_costs(
    recipe_of: Callable[[str, tuple[str, ...]], Recipe], memory: int, tell: Callable[[str], object]
) -> Iterator[MethodCost | UnsupportedMethod]:
    """Each way of adapting in turn; `recipe_of(method, overrides)` is the recipe that it would be tuned by.

    `tell` is told of each before it is measured, which takes a while.

    Raises:
        ToastError: the data set or the backbone cannot be had, which no way of adapting mends.
    """
    for number, (way, (method, fields)) in enumerate(METHOD_VARIANTS.items()):
        tell(f"Measuring {way} …")
        recipe = recipe_of(method, (*fields, f"training.eval_batch_size={MAX_TIMED_BATCH_SIZE}"))
        started = time.perf_counter()
        try:
            session = prepare_session(recipe, place=False)
            yield _estimate_method_cost(way, session, memory, time.perf_counter() - started)
        except ToastError as error:
            if number == 0:
                raise
            yield UnsupportedMethod(way, error.what)


def _estimate_method_cost(way: str, session: Session, memory: int, before: float) -> MethodCost:
    training = session.recipe.training
    sizes = session.sizes()
    found: MemoryByBatchSize = estimate_memory_by_batch_size(
        session.model, training, next(iter(session.batches("train", train=True))), session.accelerator
    )
    session.place()
    largest = found.largest(memory)
    timed = max(1, min(training.batch_size, largest, MAX_TIMED_BATCH_SIZE))
    session.recipe = session.recipe.model_copy(update={"training": training.model_copy(update={"batch_size": timed})})
    try:
        seconds = measure_time_per_sample(session, before).epoch(len(session.data.splits["train"]))
    except torch.OutOfMemoryError:
        seconds = None
    return MethodCost(
        way,
        sizes["trained_parameters"],
        sizes["flops"],
        sizes["flops_plain"],
        {size: found.at(size).total for size in MEMORY_BATCH_SIZES},
        training.batch_size,
        largest,
        seconds,
    )


def parse_memory(text: str) -> int:
    """Bytes of `24GB`, `24GiB`, `800 MB`.

    Raises:
        UsageError: it is nothing like that.
    """
    units: dict[str, Any] = {"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
    units |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kKMGT]i?B)", text.strip())
    if match is None or match[2] not in units or float(match[1]) == 0:
        raise UsageError(
            f"'{text}' is no amount of memory.", what_to_do="Write --memory 24GB.", code="cli.invalid-memory"
        )
    return int(float(match[1]) * units[match[2]])
