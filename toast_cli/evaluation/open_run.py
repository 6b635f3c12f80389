"""Opening of finished runs for evaluation: the model on its device, and the data."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import Accelerator

from toast_cli.data.base import DataSet
from toast_cli.data.class_map import normalize_class_names
from toast_cli.data.identity import describe_class_differences
from toast_cli.data.python_data import PythonData
from toast_cli.model.generation import TextGenerator, choose_template
from toast_cli.model.model import Model
from toast_cli.model.recipe_data import open_data
from toast_cli.recipe.parse import replace_recipe_fields, set_data_source
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.load_model import load_model
from toast_cli.training.distributed.devices import make_accelerator
from toast_cli.training.recorded_paths import find_recorded_paths
from toast_cli.training.reporter import Reporter
from toast_cli.training.run_data import describe_changed_split, open_shared_data
from toast_cli.training.session import Session
from toast_cli.utils.constants import PYTHON_DATA
from toast_cli.utils.errors import ToastError, UsageError


@dataclass(frozen=True)
class RunRequest:
    """A request to open a run; fields that are None come from the run's recipe.

    `alpha` scales the feedback signals. `data` is data given in Python, instead of a data set's name.
    """

    path: Path
    dataset: str | None = None
    data_dir: str | None = None
    split: str = "test"
    weights: str | None = None
    device: str | None = None
    precision: str | None = None
    alpha: float | None = None
    data: PythonData | None = field(default=None, kw_only=True)


@dataclass
class OpenedRun:
    """A finished run: its model on the device, its classes, and its recipe with the fields of the request."""

    request: RunRequest
    model: Model
    recipe: Recipe
    classes: tuple[str, ...]
    accelerator: Accelerator


def open_run(request: RunRequest) -> OpenedRun:
    """Load a run's model onto its device.

    Raises:
        UsageError: there is no run, the device or precision is not available, or `alpha` is set without feedback.
        ToastError: the run is damaged, or its backbone's weights cannot be found.
    """
    loaded = load_model(request.path, request.weights)
    fields = {name: getattr(request, name) for name in ("dataset", "data_dir", "device", "precision")}
    own = loaded.recipe
    if not (request.dataset or request.data_dir or request.data):
        own = find_recorded_paths(loaded.recipe, request.path)
    if request.data is not None and loaded.recipe.dataset.name != PYTHON_DATA:
        fields["dataset"] = PYTHON_DATA
    recipe = replace_recipe_fields(own, **fields)
    if request.data is not None:
        recipe = set_data_source(recipe, replace(request.data, classes=loaded.classes).make_source())
    set_feedback_strength(loaded.model, request.alpha)
    accelerator = make_accelerator(recipe.device, recipe.precision)
    return OpenedRun(request, loaded.model.to(accelerator.device), recipe, loaded.classes, accelerator)


def make_text_generator(run: OpenedRun, notice: Callable[[str], object], raw: bool = False) -> TextGenerator:
    """Return the language model of a run for generation, with the template of the run unless `raw` is true.

    Raises:
        UsageError: the backbone is not a language model.
        ToastError: the backbone has no tokenizer.
    """
    template = None if raw else choose_template(run.recipe, run.model.backbone.tokenizer)
    return TextGenerator(run.model, template, notice)


def set_feedback_strength(model: Model, alpha: float | None) -> None:
    """Scale the feedback signals of a model by `alpha`; None leaves them unchanged.

    Raises:
        UsageError: the model has no feedback path.
    """
    if alpha is None:
        return
    if model.adapted.steering is None:
        raise UsageError(
            "--alpha scales the feedback, and this model has no feedback path.",
            what_to_do="Leave --alpha out.",
            code="method.no-feedback-path",
        )
    model.adapted.steering.strength = alpha


def open_session(run: OpenedRun, reporter: Reporter) -> Session:
    """Return a session of a run, and check that its data has the requested split.

    Raises:
        UsageError: the split does not exist.
        ToastError: the classes of the data set differ from the model's, or it cannot be opened.
    """
    data, split = open_run_data(run, reporter), run.request.split
    if split not in data.splits:
        raise UsageError(
            f"The data set has no split '{split}'.",
            what_to_do=f"Use one of: {', '.join(data.splits)}.",
            code="data.missing-split",
        )
    changed = describe_changed_split(run.request.path, split, data) if run.request.dataset is None else None
    if changed is not None:
        reporter.report_message(f"{changed} Its results cannot be compared with those of the run.")
    return Session(run.recipe, data, run.model, run.accelerator)


def open_run_data(run: OpenedRun, reporter: Reporter) -> DataSet:
    """Open the data set to evaluate a run on, with its classes in the model's order.

    A data set other than the run's own may have the same classes in another order; it is reordered, with a message. In
    the run's own data set, another order means that the model and the data do not belong together, unless earlier
    versions sorted names in another form of Unicode.

    Raises:
        ToastError: the classes of the data set differ from the model's, or it cannot be opened.
    """
    data, classes = open_shared_data(run.recipe, run.accelerator), normalize_class_names(run.classes)
    may_reorder = run.request.dataset is not None or classes != run.classes
    if may_reorder and data.classes != classes and sorted(data.classes) == sorted(classes):
        data = open_data_in_class_order(classes, run.recipe, data)
        reporter.report_message(
            "The data has the classes of the run in another order; they were reordered to match the run."
        )
    check_classes(classes, data.classes, run.request.path)
    return data


def open_data_in_class_order(classes: tuple[str, ...], recipe: Recipe, data: DataSet) -> DataSet:
    """Open the data set again with these classes; return `data` if it does not support a list of classes."""
    if getattr(recipe.dataset, "class_file", "none") is not None:
        return data
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "classes.json"
        file.write_text(json.dumps(classes), encoding="utf-8")
        dataset = recipe.dataset.model_dump(mode="json") | {"class_file": str(file)}
        return open_data(replace_recipe_fields(recipe, dataset=dataset))


def check_classes(model: tuple[str, ...], data: tuple[str, ...], path: Path) -> None:
    """Check that the data has the classes of the model, in the same order.

    Raises:
        ToastError: the classes or their order differ.
    """
    if model == data:
        return
    raise ToastError(
        f"The classes of the data set differ from those that {path} was trained on.",
        describe_class_differences(model, data),
        "Evaluate on data with the same classes.",
        code="data.wrong-classes",
    )
