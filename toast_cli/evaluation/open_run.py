"""Finished runs, opened to be measured: the model on its device, and the data that it is measured on."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from toast_cli.data.base import DataSet
from toast_cli.model.batches import open_data
from toast_cli.model.model import Model
from toast_cli.recipe.parse import replace_recipe_fields
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.load_model import load_model
from toast_cli.training.distributed.devices import make_accelerator
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import Session
from toast_cli.utils.errors import ToastError, UsageError


@dataclass(frozen=True)
class RunRequest:
    """Which run is opened, on what, and how; what is None comes from the run's own recipe.

    With `alpha`, the feedback's signals are sent so many times as strong.
    """

    path: Path
    dataset: str | None = None
    data_dir: str | None = None
    split: str = "test"
    weights: str | None = None
    device: str | None = None
    precision: str | None = None
    alpha: float | None = None


@dataclass
class OpenedRun:
    """A finished run: its model on its device, its classes, and its recipe with the request's fields in place."""

    request: RunRequest
    model: Model
    recipe: Recipe
    classes: tuple[str, ...]
    accelerator: Accelerator


def open_run(request: RunRequest) -> OpenedRun:
    """Load a run's model onto its device.

    Raises:
        UsageError: there is no run, no such device or precision, or no feedback for `alpha` to scale.
        ToastError: the run is damaged, or its backbone's weights cannot be found.
    """
    loaded = load_model(request.path, request.weights)
    fields = {name: getattr(request, name) for name in ("dataset", "data_dir", "device", "precision")}
    recipe = replace_recipe_fields(loaded.recipe, **fields)
    set_feedback_strength(loaded.model, request.alpha)
    accelerator = make_accelerator(recipe.device, recipe.precision)
    return OpenedRun(request, loaded.model.to(accelerator.device), recipe, loaded.classes, accelerator)


def set_feedback_strength(model: Model, alpha: float | None) -> None:
    """Scale the signals that a model feeds back by `alpha`; None leaves them alone.

    Raises:
        UsageError: it has no feedback path.
    """
    if alpha is None:
        return
    if model.adapted.steering is None:
        raise UsageError(
            "--alpha scales the feedback, and this model has none.",
            what_to_do="Leave --alpha out.",
            code="method.no-feedback-path",
        )
    model.adapted.steering.strength = alpha


def open_session(run: OpenedRun, reporter: Reporter) -> Session:
    """Return a session of a run on its data, which has the split that is asked for.

    Raises:
        UsageError: there is no such split.
        ToastError: the data set's classes are not the model's, or it cannot be opened.
    """
    data, split = open_run_data(run, reporter), run.request.split
    if split not in data.splits:
        raise UsageError(
            f"This data set has no split '{split}'.",
            what_to_do=f"It has {', '.join(data.splits)}.",
            code="data.missing-split",
        )
    return Session(run.recipe, data, run.model, run.accelerator)


def open_run_data(run: OpenedRun, reporter: Reporter) -> DataSet:
    """Open the data set that a run is measured on, with its classes in the model's order.

    Another data set than the run's own may have the same classes in another order: it is opened in the model's order,
    and a message says so. In the run's own, another order means that model and data do not belong together.

    Raises:
        ToastError: the data set's classes are not the model's, or it cannot be opened.
    """
    data = open_data(run.recipe)
    if run.request.dataset is not None and data.classes != run.classes and sorted(data.classes) == sorted(run.classes):
        data = open_data_in_class_order(run.classes, run.recipe, data)
        reporter.message("The data's classes are the run's in another order: they are taken in the run's.")
    check_classes(run.classes, data.classes, run.request.path)
    return data


def open_data_in_class_order(classes: tuple[str, ...], recipe: Recipe, data: DataSet) -> DataSet:
    """Open the data set again with these classes; return `data` if it takes no list of classes."""
    if getattr(recipe.dataset, "class_file", "none") is not None:
        return data
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "classes.json"
        file.write_text(json.dumps(classes), encoding="utf-8")
        dataset = recipe.dataset.model_dump(mode="json") | {"class_file": str(file)}
        return open_data(replace_recipe_fields(recipe, dataset=dataset))


def check_classes(model: tuple[str, ...], data: tuple[str, ...], path: Path) -> None:
    """Refuse data whose classes are not the model's, in the model's order.

    Raises:
        ToastError: they are not.
    """
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
        code="data.wrong-classes",
    )
