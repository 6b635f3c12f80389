"""The head of a model that starts from another one: rows are matched by the names of classes, others start fresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toast_cli.data.class_map import normalize_class_name
from toast_cli.data.splits import quote_class_name
from toast_cli.model.model import Model
from toast_cli.recipe.schema import Recipe
from toast_cli.utils.errors import UsageError

HEAD_PREFIX = "head."
"""Prefix of the head's tensors within a model."""
MAX_NAMED = 10
"""Number of classes that a message names."""


@dataclass(frozen=True)
class HeadStart:
    """What a head takes from an earlier one: the outputs that are new and dropped, by name, and messages for the user.

    `fresh` is True if it takes nothing.
    """

    new: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    fresh: bool = False


@torch.no_grad()
def initialize_head(
    model: Model,
    recipe: Recipe,
    classes: tuple[str, ...],
    earlier: Recipe,
    earlier_classes: tuple[str, ...],
    tensors: Mapping[str, Tensor],
) -> HeadStart:
    """Copy the rows of an earlier head to the trained head of a model, by the names of the outputs.

    Args:
        model: the model, on the CPU.
        recipe: its recipe.
        classes: its classes.
        earlier: the recipe of the earlier model.
        earlier_classes: the classes of the earlier model.
        tensors: the tensors of the earlier model by name.

    Raises:
        UsageError: the heads differ in more than their outputs.
    """
    places = {name: weight for name, weight in model.get_trained_parameters().items() if name.startswith(HEAD_PREFIX)}
    if not places:
        return HeadStart()
    if recipe.task.name != earlier.task.name:
        why = f"the task is {recipe.task.name} here and {earlier.task.name} there"
        return HeadStart(messages=(f"The head starts fresh: {why}.",), fresh=True)
    task = recipe.plugins.task
    rows, before = task.name_outputs(recipe.task, classes), task.name_outputs(earlier.task, earlier_classes)
    matched = match_rows(rows, before)
    fresh, absent = [], []
    for name, place in places.items():
        tensor = tensors.get(name)
        if tensor is None:
            absent.append(name)
            continue
        layer = name.removeprefix(HEAD_PREFIX).rpartition(".")[0]
        lengths = len(tensor), len(place)
        has_rows = layer in model.objective.output_layers and lengths == (len(before), len(rows))
        if tensor.shape[has_rows:] != place.shape[has_rows:]:
            raise _make_shape_error(name, place, tensor, recipe, earlier)
        if has_rows and matched:
            place[[new for new, _ in matched]] = tensor[[old for _, old in matched]].to(place.dtype)
        elif not has_rows:
            place.copy_(tensor)
    if len(absent) == len(places):
        return HeadStart(messages=("The head starts fresh: the earlier model has none of its own.",), fresh=True)
    if absent:
        fresh.append(f"Parts of the head that the earlier model lacks start fresh: {', '.join(absent[:3])}.")
    known, kept = {old for _, old in matched}, {new for new, _ in matched}
    new = tuple(name for row, name in enumerate(rows) if row not in kept)
    dropped = tuple(name for row, name in enumerate(before) if row not in known)
    return HeadStart(new, dropped, (_describe_rows(len(rows), new, dropped), *fresh))


def match_rows(rows: Sequence[str], before: Sequence[str]) -> list[tuple[int, int]]:
    """Return the pairs of a row and the earlier row of the same name: as it is written, else in any form of Unicode."""
    pairs: dict[int, int] = {}
    for form in (str, normalize_class_name):
        free = {form(name): old for old, name in enumerate(before) if old not in pairs.values()}
        for row, name in enumerate(rows):
            if row not in pairs and form(name) in free:
                pairs[row] = free.pop(form(name))
    return sorted(pairs.items())


def _describe_rows(count: int, new: Sequence[str], dropped: Sequence[str]) -> str:
    kept = count - len(new)
    parts = [f"The head keeps the rows of {kept:,} of {count:,} classes" if kept else "The head keeps no row"]
    if new:
        parts.append(f"new, with fresh rows: {_format_names(new)}")
    if dropped:
        parts.append(f"dropped: {_format_names(dropped)}")
    return "; ".join(parts) + "."


def _format_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return ", ".join(map(quote_class_name, names[:MAX_NAMED])) + more


def _make_shape_error(name: str, place: Tensor, tensor: Tensor, recipe: Recipe, earlier: Recipe) -> UsageError:
    return UsageError(
        "The head of this run has another shape than that of the model that it starts from.",
        (
            f"{name} is {tuple(place.shape)} here and {tuple(tensor.shape)} there.",
            *list_option_differences("task", recipe.task.model_dump(), earlier.task.model_dump()),
        ),
        "Leave the task's options as they were: only the classes may differ.",
        code="adapter.wrong-head",
    )


def list_option_differences(section: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Return a sentence on each option of a recipe's section that differs from that of an earlier model."""
    return [
        f"{section}.{name} is {here.get(name)} here and {there.get(name)} there."
        for name in dict.fromkeys((*here, *there))
        if here.get(name) != there.get(name)
    ]
