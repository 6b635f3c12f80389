"""Opening of finished runs for evaluation: the model on its device, and the data."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator

from toast_cli.data.base import TEXT_KINDS, DataSet, get_split_kind
from toast_cli.data.class_map import normalize_class_names
from toast_cli.data.identity import describe_class_differences
from toast_cli.data.python_data import PythonData
from toast_cli.evaluation.interrupted_run import load_interrupted_model
from toast_cli.evaluation.other_data import choose_dataset
from toast_cli.model.generation import TextGenerator, choose_template
from toast_cli.model.model import Model
from toast_cli.model.recipe_data import open_data, require_fitting_task
from toast_cli.recipe.parse import replace_recipe_fields, set_data_source
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.load_model import load_model
from toast_cli.storage.run_folder import is_unfinished
from toast_cli.training.data.recorded_paths import find_recorded_paths
from toast_cli.training.data.run_data import describe_changed_split, open_shared_data
from toast_cli.training.distributed.devices import make_accelerator
from toast_cli.training.reporter import Reporter
from toast_cli.utils.constants import PYTHON_DATA
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from toast_cli.training.session import Session

ALL_SPLITS = "all"
"""The split of a request for every split together, which only the evaluation of metrics supports."""

DEFAULT_SPLIT = "default"
"""The split of a request that names none: test; of other texts than the run's, all of them (see `choose_split`)."""

NEEDS_CLASS_NAMES = (
    "data.no-train-split",
    "data.too-few-classes",
    "data.class-without-images",
    "data.unknown-class",
)
"""Codes of errors of a data set that cannot be trained on, but can be evaluated with the classes of a run."""


@dataclass(frozen=True)
class RunRequest:
    """A request to open a run; fields that are None come from the run's recipe.

    `split` may be `ALL_SPLITS` or `DEFAULT_SPLIT`. `alpha` scales the feedback signals. `data` is data given in
    Python, instead of a data set's name. `overrides` are dotted fields of the data set that is named, such as
    `dataset.image_column=file`. With `interrupted`, a run that has not finished is opened at its last checkpoint.
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
    overrides: tuple[str, ...] = field(default=(), kw_only=True)
    interrupted: bool = field(default=False, kw_only=True)


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
    load = load_interrupted_model if request.interrupted and is_unfinished(request.path) else load_model
    loaded = load(request.path, request.weights)
    fields = {name: getattr(request, name) for name in ("dataset", "data_dir", "device", "precision")}
    own = loaded.recipe
    if not (request.dataset or request.data_dir or request.data):
        own = find_recorded_paths(loaded.recipe, request.path)
    if request.dataset is not None:
        data_dir, is_whole = request.data_dir or loaded.recipe.data_dir, request.split == DEFAULT_SPLIT
        fields["dataset"] = choose_dataset(
            request.dataset, loaded.recipe, data_dir, request.overrides, hold_out_texts=not is_whole
        )
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
        UsageError: the split does not exist, or there are overrides without a data set.
        ToastError: the data set has classes that the model does not know, or it cannot be opened.
    """
    from toast_cli.training.session import Session  # imports all of training, which predictions do not need

    if run.request.overrides and run.request.dataset is None:
        raise UsageError(
            f"{run.request.overrides[0]} needs a data set.",
            "A run is evaluated on its own data as it was trained on it.",
            "Name other data with --dataset, or leave the field out.",
            code="cli.missing-option",
        )
    data = open_run_data(run, reporter)
    split = choose_split(run.request, data)
    if split != ALL_SPLITS and split not in data.splits:
        raise UsageError(
            f"The data set has no split '{split}'.",
            what_to_do=f"Use one of: {', '.join(data.splits)}.",
            code="data.missing-split",
        )
    if run.request.dataset is not None:
        for note in data.notes:
            reporter.report_message(note)
    else:
        for part in data.splits if split == ALL_SPLITS else (split,):
            if (changed := describe_changed_split(run.request.path, part, data)) is not None:
                reporter.report_message(f"{changed} Its results cannot be compared with those of the run.")
    return Session(run.recipe, data, run.model, run.accelerator)


def choose_split(request: RunRequest, data: DataSet) -> str:
    """Return the split that a request measures.

    If it names none, that is test. Of other texts than the run's, it is all of them, unless their source has a test
    split of its own: then nothing was held out for one.
    """
    if request.split != DEFAULT_SPLIT:
        return request.split
    is_text = any(get_split_kind(split) in TEXT_KINDS for split in data.splits.values())
    return ALL_SPLITS if request.dataset is not None and is_text and "test" not in data.splits else "test"


def open_run_data(run: OpenedRun, reporter: Reporter) -> DataSet:
    """Open the data set to evaluate a run on, with its classes in the model's order.

    A data set other than the run's own may have the same classes in another order, or some of them, and needs no train
    split: its labels are matched by the names of the classes. In the run's own data set, another order means that the
    model and the data do not belong together, unless earlier versions sorted names in another form of Unicode.

    Raises:
        UsageError: the labels are not of the kind that the model answers.
        ToastError: the data set has classes that the model does not know, or it cannot be opened.
    """
    classes, is_other = normalize_class_names(run.classes), run.request.dataset is not None
    try:
        data = open_shared_data(run.recipe, run.accelerator)
    except ToastError as error:
        if not (is_other and error.code in NEEDS_CLASS_NAMES and can_list_classes(run.recipe)):
            raise
        data = open_data_with_classes(classes, run.recipe, run.request.path)
    require_fitting_task(run.model.objective, data, run.recipe.task.name)
    same = sorted(data.classes) == sorted(classes)
    may_match = (is_other and set(data.classes) <= set(classes)) or (same and classes != run.classes)
    if may_match and data.classes != classes and can_list_classes(run.recipe):
        data = open_data_with_classes(classes, run.recipe, run.request.path)
        if same:
            reporter.report_message(
                "The data has the classes of the run in another order; they were reordered to match the run."
            )
    check_classes(classes, data.classes, run.request.path)
    return data


def can_list_classes(recipe: Recipe) -> bool:
    """Return whether the data source accepts a list of classes, and the recipe gives none."""
    return getattr(recipe.dataset, "class_file", "none") is None


def open_data_with_classes(classes: tuple[str, ...], recipe: Recipe, path: Path) -> DataSet:
    """Open the data set with the classes of the run in `path` as its class file.

    Raises:
        ToastError: the data set has other classes, or it cannot be opened.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "classes.json"
        file.write_text(json.dumps(classes), encoding="utf-8")
        dataset = recipe.dataset.model_dump(mode="json") | {"class_file": str(file)}
        try:
            return open_data(replace_recipe_fields(recipe, dataset=dataset))
        except ToastError as error:
            if error.code != "data.unknown-class":
                raise
            raise ToastError(
                f"The data set has classes that {path} was not trained on.",
                (error.what, "The class file lists the classes of the run."),
                "Leave those images out, or evaluate on other data.",
                code="data.wrong-classes",
            ) from error


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
        "Evaluate on data with the same classes, or some of them.",
        code="data.wrong-classes",
    )
