"""Measuring a trained model again: the same numbers as at the end of its run, or on other data."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, cast

from toast_cli.attention.feedback_strength import set_feedback_strength
from toast_cli.data.base import DataSet
from toast_cli.model.batches import open_data
from toast_cli.model.model import Model
from toast_cli.recipe.parse import replace_recipe_fields
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.load_model import load_model
from toast_cli.tasks.segmentation import Segmentation
from toast_cli.training.distributed.devices import make_accelerator
from toast_cli.training.evaluate import evaluate_model, report_skipped_samples
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import Session
from toast_cli.utils.errors import ToastError, UsageError


def evaluate_run(
    path: Path,
    dataset: str | None,
    data_dir: str | None,
    split: str,
    weights: str | None,
    device: str | None,
    precision: str | None,
    reporter: Reporter,
    alpha: float | None = None,
    evaluation: str | None = None,
) -> dict[str, Any]:
    """Metrics of a saved model on a split, its size and cost; what is None comes from the run's own recipe.

    With `alpha`, the feedback's signals are sent so many times as strong; `evaluation` says how a model that labels
    pixels is shown images.

    Raises:
        UsageError: there is no such split, no feedback to scale, or no such way to show images.
        ToastError: the data set's classes are not the model's, or nothing can be loaded.
    """
    loaded = load_model(path, weights)
    recipe = replace_recipe_fields(
        loaded.recipe, dataset=dataset, data_dir=data_dir, device=device, precision=precision
    )
    if evaluation is not None:
        recipe = apply_evaluation_mode(loaded.model, recipe, evaluation)
    set_feedback_strength(loaded.model, alpha)
    accelerator = make_accelerator(recipe.device, recipe.precision)
    data = open_evaluation_data(loaded.classes, recipe, path, reporter, another=dataset is not None)
    if split not in data.splits:
        raise UsageError(f"This data set has no split '{split}'.", what_to_do=f"It has {', '.join(data.splits)}.")
    session = Session(recipe, data, loaded.model.to(accelerator.device), accelerator)
    shows = session.can_measure_attention(split)
    batches = session.batches(split, with_masks=shows)
    metrics = evaluate_model(
        session.model, reporter.track(batches, len(batches), split), accelerator, with_attention=shows
    )
    return {
        "run": str(path),
        "backbone": recipe.backbone.name,
        "dataset": recipe.dataset.name,
        "method": recipe.method.name,
        "split": split,
        **({} if alpha is None else {"alpha": alpha}),
        **({"evaluation": recipe.task.evaluation} if hasattr(recipe.task, "evaluation") else {}),
        **session.sizes(),
        {"val": "validation"}.get(split, split): metrics,
        "skipped": report_skipped_samples(reporter, **{split: batches}),
    }


def apply_evaluation_mode(model: Model, recipe: Recipe, evaluation: str) -> Recipe:
    """The recipe with whole images, or windows that slide over them; the model's objective is told, too.

    Raises:
        UsageError: the model does not label pixels, or there is no such way.
    """
    before = model.objective
    if not isinstance(before, Segmentation):
        raise UsageError("--evaluation is for models that label pixels.", what_to_do="Leave it out.")
    recipe = replace_recipe_fields(recipe, task=recipe.task.model_dump(mode="json") | {"evaluation": evaluation})
    model.objective = Segmentation(before.head, before.classes, before.window, cast("Any", recipe.task))
    return recipe


def open_evaluation_data(
    classes: tuple[str, ...], recipe: Recipe, path: Path, reporter: Reporter, *, another: bool
) -> DataSet:
    """The data set that a saved model with these classes is to be measured on.

    `another` than the model's own may have the same classes in another order: it is opened in the model's, and that
    is said. In its own such an order means that model and data do not belong together.

    Raises:
        ToastError: the data set's classes are not the model's, or it cannot be opened.
    """
    data = open_data(recipe)
    if another and data.classes != classes and sorted(data.classes) == sorted(classes):
        data = open_data_in_class_order(classes, recipe, data)
        reporter.message("The data's classes are the run's in another order: they are taken in the run's.")
    check_classes(classes, data.classes, path)
    return data


def open_data_in_class_order(classes: tuple[str, ...], recipe: Recipe, data: DataSet) -> DataSet:
    """The data set opened with these classes, where it can be told them; else as it is."""
    if getattr(recipe.dataset, "class_file", "none") is not None:
        return data
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "classes.json"
        file.write_text(json.dumps(classes), encoding="utf-8")
        dataset = recipe.dataset.model_dump(mode="json") | {"class_file": str(file)}
        return open_data(replace_recipe_fields(recipe, dataset=dataset))


def check_classes(model: tuple[str, ...], data: tuple[str, ...], path: Path) -> None:
    """Refuse data whose classes are not the model's, in the model's order."""
    if model == data:
        return
    missing, extra = sorted(set(model) - set(data)), sorted(set(data) - set(model))
    found = "; ".join(
        f"{word}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        for word, names in (("not in the data", missing), ("only in the data", extra))
        if names
    )
    raise ToastError(
        f"The data set's classes are not those that {path} was trained on.",
        found or "They are the same names in another order.",
        "Evaluate on data with the same classes.",
    )
