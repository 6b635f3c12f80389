"""Recipes whose `auto` settings only a trial can choose: numbers to build a session with, and sentences about them.

A dry run and a plan use them, which start no trial.
"""

from __future__ import annotations

from typing import Any

from toast_cli.model.recipe_data import count_workers
from toast_cli.recipe.schema import Recipe, TrainingOptions
from toast_cli.training.automatic.batch_size import LARGEST_ON_CPU, LARGEST_ON_GPU
from toast_cli.training.automatic.lr_range import RANGE_STEPS
from toast_cli.utils.config import is_automatic


def choose_workers(recipe: Recipe) -> Recipe:
    """Return the recipe with the number of worker processes, which needs no trial."""
    return set_training_fields(recipe, workers=count_workers(recipe))


def fill_placeholders(recipe: Recipe) -> Recipe:
    """Return the recipe with a plain number for every setting that only a trial can choose, to build a session."""
    fields, training = TrainingOptions.model_fields, recipe.training
    placeholders: dict[str, Any] = {}
    if is_automatic(training.batch_size):
        placeholders["batch_size"] = fields["batch_size"].default
    if is_automatic(training.lr):
        placeholders["lr"] = max(fields["lr"].default, training.min_lr)
    return set_training_fields(recipe, **placeholders)


def describe_open_choices(recipe: Recipe) -> list[str]:
    """Return a sentence about every setting that is chosen when the run starts."""
    notes, training = [], recipe.training
    if is_automatic(training.batch_size):
        notes.append(
            "training.batch_size=auto: chosen when the run starts, the largest power of two that fits, at most "
            f"{LARGEST_ON_CPU} on a CPU and {LARGEST_ON_GPU} on a GPU. The numbers here are for "
            f"{fill_placeholders(recipe).training.batch_size}."
        )
    if is_automatic(training.lr):
        notes.append(f"training.lr=auto: chosen when the run starts, by a range test of {RANGE_STEPS} steps.")
    return notes


def set_training_fields(recipe: Recipe, **fields: Any) -> Recipe:
    """Return the recipe with other values of fields of `training`, which are not validated."""
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=fields)})
