"""The data set of a recipe, and loaders of its splits for a backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from toast_cli.backbones.image_options import PixelOptions
from toast_cli.data.base import BatchLoader, BatchOptions, DataSet, LoaderOptions, set_white
from toast_cli.data.loaders import build_loader, choose_worker_count, describe_loader_machine
from toast_cli.data.open_source import open_source
from toast_cli.recipe.parse import replace_recipe_fields
from toast_cli.tasks.base import Objective
from toast_cli.utils.config import is_automatic
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.recipe.schema import Recipe


def open_data(recipe: Recipe) -> DataSet:
    """Open the recipe's data set.

    Raises:
        ToastError: the data set is missing, or has another structure than expected.
    """
    folder = Path(recipe.data_dir).expanduser() if recipe.data_dir else None
    package = recipe.plugins.packages.get("dataset", "")
    data = open_source(recipe.plugins.dataset, recipe.dataset, folder, package)
    white = recipe.images.white
    if white is None:
        return data
    return replace(data, splits={part: set_white(split, white) for part, split in data.splits.items()})


def count_workers(recipe: Recipe) -> int:
    """Return the worker processes of each loader: the recipe's number, or for `auto` one that suits the machine."""
    if not is_automatic(recipe.training.workers):
        return recipe.training.workers
    gpu = recipe.device != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
    return choose_worker_count(describe_loader_machine(gpu))


TASK_BY_TARGET = {"class": "classification", "labels": "multilabel", "number": "regression"}
"""The task that learns the labels of a data set, by `DataSet.target`."""

_TARGET_NOUNS = {"class": "one class", "labels": "several labels", "number": "a number"}
_TARGET_HINTS = {
    "class": "Name the column with the class, dataset.label_column=NAME, or give one class per image in Python",
    "labels": "Set dataset.label_separator or dataset.label_columns, or give lists of labels in Python",
    "number": "Set dataset.target_column, or give floats in Python",
}


def choose_task(recipe: Recipe, data: DataSet) -> Recipe:
    """Return the recipe with the task that fits the labels of its data, if it names no task."""
    task = TASK_BY_TARGET[data.target]
    if not recipe.plugins.default_task or data.target == "class" or recipe.task.name == task:
        return recipe
    return replace_recipe_fields(recipe, task={"name": task})


def require_fitting_task(objective: Objective, data: DataSet, task: str) -> None:
    """Check that a task learns what the labels of a data set are.

    Raises:
        UsageError: it learns something else.
    """
    wanted = objective.target
    if wanted not in TASK_BY_TARGET or not data.classes or wanted == data.target:
        return
    raise UsageError(
        f"The task '{task}' needs {_TARGET_NOUNS[wanted]} for each image, and the data has "
        f"{_TARGET_NOUNS[data.target]}.",
        what_to_do=f"Use task={TASK_BY_TARGET[data.target]}, or leave the task out. "
        f"{_TARGET_HINTS[wanted]}, if the data has {_TARGET_NOUNS[wanted]} too.",
        code="task.unfit-data",
    )


def build_batches(split: Any, recipe: Recipe, backbone: Backbone, batches: BatchOptions) -> BatchLoader:
    """Return a loader of a split, with the recipe's seed, workers and image options.

    Raises:
        UsageError: the backbone does not accept this kind of input, or the recipe's options do not fit it.
        ToastError: the split cannot be read, or has nothing to learn from.
    """
    options = LoaderOptions(
        seed=recipe.seed,
        workers=count_workers(recipe),
        pin_memory=recipe.device.partition(":")[0] in ("auto", "cuda") and torch.cuda.is_available(),
        images=recipe.images,
        pixels=recipe.task if isinstance(recipe.task, PixelOptions) else None,
    )
    return build_loader(split, backbone, batches, options)
