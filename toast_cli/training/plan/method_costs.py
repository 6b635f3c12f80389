"""A comparison of methods before a run: trained parameters, FLOPs, memory, time, and which fit into a given memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from toast_cli.model.model import count_elements
from toast_cli.recipe.schema import Recipe
from toast_cli.training.distributed.devices import make_accelerator
from toast_cli.training.optimization import check_optimizer
from toast_cli.training.plan.memory import MemoryByBatchSize, estimate_memory_by_batch_size, get_free_memory
from toast_cli.training.plan.outline import (
    Outline,
    count_outline_flops,
    estimate_outline_memory,
    outline_model,
)
from toast_cli.training.plan.text_lengths import TextLengths
from toast_cli.training.plan.throughput import measure_time_per_sample
from toast_cli.training.session import Session, prepare_session
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.formatting import format_bytes

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
IMAGE_METHODS = frozenset({"linear", "vpt"})
"""Methods that no language model has: a new head, and tokens before those of a picture."""


@dataclass(frozen=True)
class MethodCost:
    """The cost of one method variant on a backbone and data set.

    `weights` is in bytes, and so is `memory` by batch size; `largest` is the largest batch size that fits. For texts,
    both are of the longest, and `typical_memory` and `typical_largest` of a typical one. `seconds_per_epoch` is
    measured on this device; None if it is not to be measured, or if there is too little memory.
    """

    way: str
    trained: int
    flops: int
    flops_plain: int
    weights: int
    memory: dict[int, int]
    batch_size: int
    largest: int
    seconds_per_epoch: float | None = None
    typical_memory: dict[int, int] | None = None
    typical_largest: int | None = None
    recipe_accumulate: int = 1

    @property
    def fits(self) -> bool:
        """Return whether at least one sample fits."""
        return self.largest > 0

    @property
    def accumulate(self) -> int:
        """Return the forward passes per step that give the recipe's samples per step with batches that fit."""
        if self.largest >= self.batch_size:
            return self.recipe_accumulate
        return -(-self.batch_size * self.recipe_accumulate // max(self.largest, 1))


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
    timed: bool = True,
) -> Iterator[MethodCost | UnsupportedMethod]:
    """Yield the cost of each method variant on a model that is built.

    Args:
        recipe_of: `recipe_of(method, overrides)` returns the recipe of a variant.
        memory: the memory to fit into, in bytes.
        tell: called with a message before each variant is measured.
        others: further methods to measure with their default options.
        timed: measure the time of an epoch too.

    Raises:
        ToastError: the first variant fails, because the data set or the backbone cannot be opened; or there is less
            free memory than the weights need.
    """
    variants = list_variants(others, timed)
    for number, (way, (method, fields)) in enumerate(variants.items()):
        tell(f"Measuring {way} …")
        try:
            recipe = recipe_of(method, (*fields, f"training.eval_batch_size={MAX_TIMED_BATCH_SIZE}"))
            _require_room(4 * (recipe.plugins.backbone.parameters or 0), recipe.backbone.name)
            started = time.perf_counter()
            session = prepare_session(recipe, place=False)
            yield _estimate_method_cost(way, session, memory, timed, time.perf_counter() - started)
        except ToastError as error:
            if number == 0:
                raise
            yield UnsupportedMethod(way, " ".join(filter(None, (error.what, error.why))))


def list_variants(
    others: Iterable[str] = (), timed: bool = True, texts: bool = False
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the compared variants, for images or `texts`, and other methods.

    Variants with a cache differ from others in their time alone.
    """
    own = {way: each for way, each in METHOD_VARIANTS.items() if timed or "training.cache=true" not in each[1]}
    own = {way: each for way, each in own.items() if not (texts and each[0] in IMAGE_METHODS)}
    return own | {name: (name, ()) for name in others}


def estimate_text_method_costs(
    recipe_of: Callable[[str, tuple[str, ...]], Recipe],
    outline: Outline,
    lengths: TextLengths,
    memory: int,
    tell: Callable[[str], object],
    others: Iterable[str] = (),
    timed: bool = False,
) -> Iterator[MethodCost | UnsupportedMethod]:
    """Yield the cost of each method variant on a language model, from its outline. The others are as above.

    If it is to be `timed`, each model that fits into the free memory is built for that.

    Raises:
        ToastError: the first variant fails.
    """
    for number, (way, (method, fields)) in enumerate(list_variants(others, timed, texts=True).items()):
        tell(f"Measuring {way} …")
        try:
            recipe = recipe_of(method, fields)
            accelerator = make_accelerator(recipe.device, recipe.precision)
            if number == 0:
                check_optimizer(recipe.training, accelerator.device)
            recipe.plugins.method.check(recipe.method, recipe.init_from is not None)
            model = outline_model(recipe, outline)
            longest = typical = estimate_outline_memory(model, recipe, lengths.longest, accelerator)
            if lengths.typical != lengths.longest:
                typical = estimate_outline_memory(model, recipe, lengths.typical, accelerator)
            flops, flops_plain = count_outline_flops(model, lengths.typical)
            seconds = _time_texts(recipe, longest, accelerator.device) if timed else None
        except ToastError as error:
            if number == 0:
                raise
            yield UnsupportedMethod(way, " ".join(filter(None, (error.what, error.why))))
            continue
        yield MethodCost(
            way,
            count_elements(model.whole.get_trained_parameters().values()),
            flops,
            flops_plain,
            longest.weights,
            {size: longest.estimate(size).total for size in MEMORY_BATCH_SIZES},
            recipe.training.batch_size,
            longest.find_largest_batch_size(memory),
            seconds,
            {size: typical.estimate(size).total for size in MEMORY_BATCH_SIZES},
            typical.find_largest_batch_size(memory),
            recipe.training.accumulate,
        )


def _time_texts(recipe: Recipe, step: MemoryByBatchSize, device: torch.device) -> float | None:
    """Return the seconds of an epoch; None if the model and a step do not fit into the free memory."""
    free = [get_free_memory(torch.device("cpu")), get_free_memory(device)]
    least = min(amount for amount in free if amount is not None)
    largest = step.find_largest_batch_size(least)
    if not largest:
        return None
    size = min(recipe.training.batch_size, largest, MAX_TIMED_BATCH_SIZE)
    timed = recipe.training.model_copy(update={"batch_size": size, "eval_batch_size": size})
    session = prepare_session(recipe.model_copy(update={"training": timed}))
    return measure_time_per_sample(session).estimate_epoch_seconds(len(session.data.splits["train"]))


def _require_room(needed: int, name: str) -> None:
    """Check that there is enough free memory to build a model.

    Raises:
        ToastError: There is not.
    """
    free = get_free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise ToastError(
            f"{name} is too large to be planned on this machine.",
            f"Its weights need {format_bytes(needed)}, and {format_bytes(free)} are free.",
            "Choose a smaller backbone, or plan on a machine with more memory.",
            code="device.too-little-memory",
        )


def _estimate_method_cost(way: str, session: Session, memory: int, timed: bool, before: float) -> MethodCost:
    training = session.recipe.training
    sizes = session.measure_model_sizes()
    step_memory: MemoryByBatchSize = estimate_memory_by_batch_size(
        session.model, training, next(iter(session.make_loader("train", train=True))), session.accelerator
    )
    largest = step_memory.find_largest_batch_size(memory)
    seconds = None
    if timed:
        session.move_to_device()
        size = max(1, min(training.batch_size, largest, MAX_TIMED_BATCH_SIZE))
        session.recipe = session.recipe.model_copy(
            update={"training": training.model_copy(update={"batch_size": size})}
        )
        with suppress(torch.OutOfMemoryError):
            measured = measure_time_per_sample(session, before)
            seconds = measured.estimate_epoch_seconds(len(session.data.splits["train"]))
    return MethodCost(
        way,
        sizes["trained_parameters"],
        sizes["flops"],
        sizes["flops_plain"],
        step_memory.weights,
        {size: step_memory.estimate(size).total for size in MEMORY_BATCH_SIZES},
        training.batch_size,
        largest,
        seconds,
        recipe_accumulate=training.accumulate,
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
