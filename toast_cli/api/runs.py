"""Runs in Python: `tune` trains and tests a model as `toast tune` does, `evaluate` measures it as `toast eval` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toast_cli.api.classes import to_class_names
from toast_cli.api.models import build_steered
from toast_cli.api.reporter import LineReporter
from toast_cli.api.steered import Steered
from toast_cli.data.python_data import PythonData
from toast_cli.evaluation.answer_files import write_answer_files
from toast_cli.evaluation.evaluate_run import evaluate_run
from toast_cli.evaluation.open_run import DEFAULT_SPLIT, RunRequest
from toast_cli.evaluation.training_figures import TrainingFigures
from toast_cli.recipe.lookup import resolve_recipe, resolve_recorded_backbone
from toast_cli.recipe.parse import set_data_source
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.load_model import load_model
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.callbacks import Callbacks, EpochInfo, StepInfo
from toast_cli.training.continuation.extension import check_changes
from toast_cli.training.continuation.start import read_start_recipe
from toast_cli.training.evaluate import SplitAnswers
from toast_cli.training.reporter import Reporter
from toast_cli.training.run import Run
from toast_cli.training.tune import prepare_tuning, run_tuning
from toast_cli.utils.constants import PYTHON_DATA
from toast_cli.utils.errors import UsageError, describe_object

TRAINING_KEYWORDS = ("epochs", "lr", "batch_size", "workers")
"""Keywords of `tune` that are options of `toast tune`."""


@dataclass(frozen=True)
class TuneResult:
    """A finished run.

    Attributes:
        model: The model with the weights of the best epoch, in evaluation mode, on the device of the run.
        results: The contents of `results.json`: `validation` and `test` metrics, `selected_epoch`, sizes and time.
        run: The run folder, which commands take as `--run`.
    """

    model: Steered
    results: dict[str, Any]
    run: Path


def tune(
    backbone: str | None = None,
    dataset: Any = None,
    method: str | None = None,
    *,
    recipe: str | Path | None = None,
    weights: str | Path | None = None,
    data_dir: str | Path | None = None,
    init_from: str | Path | None = None,
    output_dir: str | Path | None = None,
    seed: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    resume: str | Path | None = None,
    classes: int | Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_step: Callable[[StepInfo], Any] | None = None,
    on_epoch: Callable[[EpochInfo], Any] | None = None,
    progress: bool = False,
    **fields: Any,
) -> TuneResult:
    """Adapt a frozen backbone to a data set, as `toast tune` does, with the same recipes, run folder and results.

    The arguments up to `resume` are the options of `toast tune`. Without `dataset`, the demo's is used.

    `dataset` is a name as on the command line, or data given in Python: a list of (image, label), a
    `torch.utils.data.Dataset` of such items, or a mapping of the splits `train`, `val` and `test` to either. An image
    is a path, a PIL image, an array `[H, W, C]` or a tensor `[C, H, W]` with 8-bit values or floats from 0 to 1, before
    any normalization or augmentation. Of data without splits, `dataset.test_fraction` (0.2) is held out for test;
    without a validation split, `dataset.val_fraction` (0.1) of the training images is held out for it.

    A label is the name of a class, or its index from 0. A list, tuple or set of names or of indices is several labels,
    which may be none (the task `multilabel`). A float, or a list of floats named by `classes`, is a number to predict
    (the task `regression`).

    Args:
        backbone: Name of a backbone.
        dataset: Name of a data set, or the data.
        method: Name of a method.
        recipe: Built-in recipe or YAML file.
        weights: Backbone weights: a file, the folder of a language model, or "none".
        data_dir: Root folder of the data sets.
        init_from: Pre-tuned artifact that the feedback path starts from, or run, adapter or export to continue from.
        output_dir: Folder of the run; default: a new folder in `runs/`.
        seed: Random seed.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto", "fp32", "bf16" or "fp16".
        resume: Folder of an interrupted run to resume with its own settings, or of a finished one to extend with
            `overrides={"training.epochs": N}`. Data given in Python is given again.
        classes: Names of the classes, labels or numbers in order, or how many there are, for data given in Python. A
            vector of zeros and ones has a place for each. Default: the `classes` of the `Dataset`, else the sorted
            labels of train, else a number for every index.
        overrides: Recipe fields by dotted name: `{"training.epochs": 5, "method.rank": 8}`.
        fields: The same fields as keywords, with two underscores for a dot: `training__epochs=5`; and `epochs`, `lr`,
            `batch_size` and `workers`, as on the command line.
        on_step: Called with a `StepInfo` after every optimizer step; `info.stop()` ends training.
        on_epoch: Called with an `EpochInfo` after every epoch; `info.stop()` ends training.
        progress: Print messages and the numbers of every epoch on stderr.

    Raises:
        UsageError: An argument, the recipe or the data is invalid. Nothing was written.
        ToastError: Training failed. Finished work stays in the run folder.
    """
    names = {"backbone": backbone, "method": method, "seed": seed, "precision": precision}
    paths = {"recipe": recipe, "weights": weights, "data_dir": data_dir, "init_from": init_from}
    options = {**names, **{name: None if path is None else str(path) for name, path in paths.items()}}
    data = _to_python_data(dataset, classes)
    reporter: Reporter = LineReporter() if progress else Reporter()
    overrides = {**(overrides or {}), **_to_dotted_names(fields)}
    texts = _to_texts(overrides)
    changes: list[str] = []
    if resume is not None:
        given, changes = [name for name, value in options.items() if value is not None], texts
        given += ["output_dir"] if output_dir is not None else []
        given += ["dataset"] if isinstance(dataset, str) else []
        resolved = _resolve_resumed_recipe(Path(resume), given, changes, device, data)
        output_dir = resume
    else:
        if backbone is not None and not isinstance(backbone, str):
            raise UsageError(
                f"Expected the name of a backbone, got {describe_object(backbone)}.",
                what_to_do="Train a model of yours with toast_cli.steer(MODEL, classes), and keep it with save().",
                code="backbone.not-a-name",
            )
        if data is not None and backbone is None and recipe is None and init_from is None:
            raise UsageError(
                "Data given in Python needs a backbone.",
                what_to_do="Pass backbone=\"vit_s16\", for example; 'toast backbones' lists them.",
                code="recipe.missing-backbone",
            )
        named = PYTHON_DATA if data is not None else dataset
        resolved = _resolve_new_recipe({**options, "dataset": named, "device": device}, texts, reporter)
    if data is not None:
        resolved = set_data_source(resolved, data.make_source())
    folder = None if output_dir is None else Path(output_dir)
    run = prepare_tuning(resolved, folder, reporter, resume is not None, changes)
    answers: list[SplitAnswers] = []
    results = run_tuning(run, Callbacks(on_step, on_epoch), answers.append, TrainingFigures())
    for each in answers:
        write_answer_files(each, run.folder.path)
    return TuneResult(_get_model(run), results, run.folder.path)


def evaluate(
    run: str | Path,
    dataset: Any = None,
    split: str | None = None,
    *,
    data_dir: str | Path | None = None,
    weights: str | Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    alpha: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Return the metrics of a run on a split, as `toast eval` does.

    Data given in Python is divided into splits as by `tune`, so the data of the run has the run's own test split. To
    measure all of a list, pass `{"test": data}`. Its labels are names or indices of the model's classes.

    Args:
        run: Run folder, adapter folder or exported file.
        dataset: Name of a data set, or the data, as for `tune`; default: that of the run.
        split: "train", "val", "test" or "all"; default: "test", and of texts given by `dataset`, all of them.
        data_dir: Root folder of the data sets.
        weights: Backbone weights to use instead of those in the recipe.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto", "fp32", "bf16" or "fp16".
        alpha: Scale of the feedback signals.
        overrides: Fields of the data set that is named: `{"dataset.image_column": "file"}`.
        progress: Print messages on stderr.

    Raises:
        UsageError: There is no such run, split or device, or the run's data was given in Python and is not given here.
        ToastError: The classes of the data differ from the model's, or the run or its data cannot be loaded.
    """
    data = _to_python_data(dataset, None)
    request = RunRequest(
        Path(run),
        dataset if data is None else None,
        None if data_dir is None else str(data_dir),
        split or DEFAULT_SPLIT,
        None if weights is None else str(weights),
        device,
        precision,
        alpha,
        data=data,
        overrides=tuple(_to_texts(overrides or {})),
    )
    return evaluate_run(request, LineReporter() if progress else Reporter())


def _to_python_data(dataset: Any, classes: int | Sequence[str] | None) -> PythonData | None:
    """Return data given in Python, or None for a name.

    Raises:
        UsageError: `classes` is invalid, or given for a data set with a name.
    """
    if dataset is not None and not isinstance(dataset, str):
        return PythonData(dataset, None if classes is None else to_class_names(classes))
    if classes is not None:
        raise UsageError(
            "The argument 'classes' is for data given in Python.",
            what_to_do='Use overrides={"dataset.class_file": FILE} for data on disk.',
            code="task.unneeded-classes",
        )
    return None


def _to_texts(overrides: Mapping[str, Any]) -> list[str]:
    """Return overrides as a command line has them."""
    return [f"{name}={json.dumps(value, ensure_ascii=False, default=str)}" for name, value in overrides.items()]


def _to_dotted_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return recipe fields that were given as keywords by their dotted names.

    Raises:
        UsageError: a keyword is no field of a recipe.
    """
    found = {}
    for name, value in fields.items():
        dotted = f"training.{name}" if name in TRAINING_KEYWORDS else name.replace("__", ".")
        if "." not in dotted:
            raise UsageError(
                f"tune() has no argument '{name}'.",
                what_to_do="Name a field of the recipe with its section: training__epochs=5, or "
                'overrides={"training.epochs": 5}.',
                code="recipe.unknown-field",
            )
        found[dotted] = value
    return found


def _resolve_new_recipe(options: Mapping[str, Any], overrides: Sequence[str], reporter: Reporter) -> Recipe:
    """Return the recipe of the arguments, as of a command line.

    Raises:
        UsageError: there is no such recipe, or the result is invalid.
    """
    start = read_start_recipe(options["init_from"], overrides, options["weights"])
    resolved = resolve_recipe(**options, overrides=overrides, start=start)
    for message in (resolved.source, *resolved.messages):
        reporter.report_message(message)
    folder = None if options["recipe"] is None else Path(options["recipe"]).parent
    if folder is None or options["backbone"] is not None or not (folder / "environment.json").is_file():
        return resolved.recipe
    return resolve_recorded_backbone(resolved.recipe, RunFolder(folder).read_toast_version())


def _resolve_resumed_recipe(
    run: Path, given: Sequence[str], changes: Sequence[str], device: str | None, data: PythonData | None
) -> Recipe:
    """Return the recipe of a run to resume.

    Raises:
        UsageError: other arguments are given, the run cannot be resumed, or its data is not that of the argument.
    """
    if given:
        raise UsageError(
            f"resume continues a run with its own settings, and {given[0]} is given.",
            what_to_do="Leave it out; device, data given in Python, overrides, callbacks and progress can be added.",
            code="resume.conflicting-options",
        )
    check_changes(changes, run)
    RunFolder.reopen(run, extend=bool(changes))
    recipe = resolve_recipe(recipe=str(run / "recipe.yaml"), device=device).recipe
    if data is not None and recipe.dataset.name != PYTHON_DATA:
        raise UsageError(
            f"{run} reads its own data, {recipe.dataset.name}.",
            what_to_do="Leave the argument 'dataset' out.",
            code="resume.conflicting-options",
        )
    return recipe


def _get_model(run: Run) -> Steered:
    """Return the model of a finished run. A sharded one is loaded again, whole."""
    session = run.session
    if session.recipe.training.shard:
        loaded = load_model(run.folder.adapter)
        return build_steered(loaded.model.to(session.accelerator.device), loaded.recipe, loaded.classes)
    return build_steered(session.model, session.recipe, session.data.classes)
