"""Validation of recipes: each section by the options of its plugin. All problems are reported together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from toast_cli import registry
from toast_cli.backbones.image_options import ImageOptions, PixelOptions
from toast_cli.recipe.overrides import apply_overrides
from toast_cli.recipe.safe_yaml import MAX_RECIPE_BYTES, parse_recipe
from toast_cli.recipe.schema import PretuningOptions, Recipe, RecipePlugins, TrainingOptions
from toast_cli.recipe.unvalidated_recipe import (
    SECTIONS,
    FieldPath,
    PartialRecipe,
    expand_shorthand,
    suggest_source_prefix,
)
from toast_cli.recipe.validation_errors import RecipeProblem, convert_validation_error, make_recipe_error
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import UsageError, did_you_mean

_GROUPS = {"dataset": registry.SOURCES, "method": registry.METHODS, "task": registry.TASKS}
ModelT = TypeVar("ModelT", bound=BaseModel)
_PLACEHOLDERS = {section: {"name": "-"} for section in SECTIONS}


def load_recipe(path: Path) -> Recipe:
    """Load and validate the recipe in a YAML file.

    Raises:
        UsageError: The file cannot be read or is not a valid recipe. The message lists every problem with its line.
        ToastError: A plugin that the recipe needs fails to load.
    """
    return validate_partial_recipe(parse_recipe(read_recipe_text(path), str(path)))


def build_recipe(values: Mapping[str, Any], places: Mapping[FieldPath, str], origin: str) -> Recipe:
    """Return the recipe with these plain values.

    Args:
        values: The fields of the recipe.
        places: Where each value was written, for messages.
        origin: The name of the whole in messages.
    """
    return validate_partial_recipe(PartialRecipe(dict(values), dict(places), origin))


def replace_recipe_fields(recipe: Recipe, **fields: Any) -> Recipe:
    """Return the recipe with some fields replaced, validated again. A field given as None keeps its value."""
    values = recipe.model_dump(mode="json") | {name: value for name, value in fields.items() if value is not None}
    replaced = build_recipe(values, {}, origin="options")
    return set_data_source(replaced, recipe.plugins.dataset) if replaced.dataset == recipe.dataset else replaced


def set_data_source(recipe: Recipe, source: Any) -> Recipe:
    """Return the recipe with another `DataSource` that opens its data set, such as data given in Python."""
    recipe = recipe.model_copy()
    recipe._plugins = replace(recipe.plugins, dataset=source)
    return recipe


def validate_partial_recipe(draft: PartialRecipe) -> Recipe:
    """Validate a draft and return its recipe.

    Raises:
        UsageError: The draft is not a valid recipe. The message lists every problem.
    """
    models: dict[str, type[BaseModel]] = {
        "": Recipe,
        "images": ImageOptions,
        "training": TrainingOptions,
        "pretuning": PretuningOptions,
    }
    plugins: dict[str, Any] = {}
    sections: dict[str, Any] = {}
    problems = _replace_deprecated_fields(draft)
    default_task = not draft.values.get("task")
    for section in SECTIONS:
        if section == "task" and isinstance(task := draft.values.setdefault("task", {}), dict):
            known = "dataset" in plugins
            usual = plugins["dataset"].get_task(draft.values["dataset"]) if known else "classification"
            task.setdefault("name", usual)
        try:
            plugins[section] = _load_plugin(section, draft.values.get(section))
            models[section] = plugins[section].options
        except _UnusableSection as unusable:
            problems.append(unusable.problem)
    for section in plugins:
        try:
            sections[section] = _validate_json(models[section], draft.values[section])
        except ValidationError as error:
            problems += convert_validation_error(error, (section,), draft, models)
    try:
        recipe = _validate_json(Recipe, {**draft.values, **_PLACEHOLDERS})
    except ValidationError as error:
        problems += convert_validation_error(error, (), draft, models)
    if not problems:
        problems += _find_unfit_task(plugins["dataset"], sections["dataset"], sections["task"])
    metrics = registry.load_all(registry.METRICS)
    if not problems:
        problems += _find_unknown_metric(plugins["task"], sections["task"], metrics)
    if problems:
        raise make_recipe_error(problems, draft)
    sections["method"] = plugins["method"].complete(sections["method"], sections["task"].name)
    recipe = recipe.model_copy(update=sections)
    packages = {section: _find_package(section, sections[section].name) for section in plugins}
    recipe._plugins = RecipePlugins(**plugins, metrics=metrics, packages=packages, default_task=default_task)
    return recipe


def build_dataset_options(
    choice: str, fields: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> NamedOptions:
    """Return the validated options of a data set alone, as given by `--dataset`, with further fields of its own.

    Raises:
        UsageError: There is no such data set, a field is invalid, or an override addresses another section.
    """
    draft = PartialRecipe(
        {"dataset": {**expand_shorthand("dataset", choice), **(fields or {})}}, origin=choice, kind="data set"
    )
    apply_overrides(draft, overrides)
    others = sorted(set(draft.values) - {"dataset"})
    if others:
        raise UsageError(
            f"Only the data set can be changed here, not {others[0]}.",
            what_to_do="Write dataset.KEY=VALUE.",
            code="recipe.only-data-set",
        )
    try:
        options: type[NamedOptions] = _load_plugin("dataset", draft.values["dataset"]).options
        return _validate_json(options, draft.values["dataset"])
    except _UnusableSection as unusable:
        raise make_recipe_error([unusable.problem], draft) from unusable
    except ValidationError as error:
        raise make_recipe_error(
            convert_validation_error(error, ("dataset",), draft, {"dataset": options}), draft
        ) from error


def read_recipe_text(path: Path) -> str:
    """Return the text of a recipe file.

    Raises:
        UsageError: The file is missing, unreadable, too large or not UTF-8.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UsageError(
                f"{path} is larger than {MAX_RECIPE_BYTES // 1_000_000} MB.",
                "A recipe is a short YAML file.",
                code="recipe.oversized-file",
            )
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"The recipe {path} cannot be read.", error.strerror or str(error), code="recipe.unreadable-file"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The recipe {path} cannot be read.",
            "It is not UTF-8 text.",
            "Save it as UTF-8.",
            code="recipe.unreadable-file",
        ) from error


class _UnusableSection(Exception):
    """Raised for a section whose plugin, and so its options class, is unknown."""

    def __init__(self, problem: RecipeProblem) -> None:
        self.problem = problem


def _find_unfit_task(source: Any, options: NamedOptions, task: NamedOptions) -> list[RecipeProblem]:
    """Return a problem if only one of the task and the data set has a label for every pixel."""
    dataset, usual = options.name, source.get_task(options.model_dump())
    if task.name == usual:
        return []
    labels_pixels = issubclass(registry.load_entry(registry.TASKS, usual).options, PixelOptions)
    if labels_pixels == isinstance(task, PixelOptions):
        return []
    if labels_pixels:
        text = f"{dataset} has a label for every pixel. Use segmentation or token-labels, or leave task.name out."
    else:
        text = (
            f"the task needs a label for every pixel, and {dataset} has none. "
            "Use voc, ade20k, masks:PATH or demo-segmentation, or leave task.name out."
        )
    return [RecipeProblem(("task", "name"), text, task.name, code="recipe.unfit-task")]


def _find_unknown_metric(task: Any, options: NamedOptions, registered: Mapping[str, Any]) -> list[RecipeProblem]:
    """Return a problem if the field `select` of a task's options names no metric that can select an epoch."""
    select, known = getattr(options, "select", None), task.list_selectable_metrics(registered)
    if select is None or select in known:
        return []
    hint = did_you_mean(select, known)
    return [RecipeProblem(("task", "select"), f"there is no such metric. {hint}", select, code="recipe.unknown-choice")]


def describe_deprecated_fields(draft: PartialRecipe) -> list[str]:
    """Return a warning for each deprecated field that a draft sets."""
    training = draft.values.get("training")
    if not isinstance(training, dict) or "tensorboard" not in training:
        return []
    return [
        f"Warning: training.tensorboard ({draft.locate(('training', 'tensorboard'))}) is deprecated, and version 0.4.0 "
        "or a later one removes it. Write training.trackers=tensorboard."
    ]


def _replace_deprecated_fields(draft: PartialRecipe) -> list[RecipeProblem]:
    """Replace fields of earlier versions by their successors; return a problem for each that is set in both ways."""
    training = draft.values.get("training")
    if not isinstance(training, dict) or training.get("tensorboard") is not True:
        return []
    if training.get("trackers"):
        text = "is the earlier spelling of training.trackers, which is set too. Leave it out."
        return [RecipeProblem(("training", "tensorboard"), text, True, code="recipe.invalid-value")]
    del training["tensorboard"]
    training["trackers"] = ["tensorboard"]
    return []


def load_plugin(section: str, name: str) -> Any:
    """Return the registered object that the name of a section means.

    Raises:
        UsageError: there is none of this name.
        ToastError: it fails to load.
    """
    return registry.load_backbone_card(name) if section == "backbone" else registry.load_entry(_GROUPS[section], name)


def _load_plugin(section: str, content: Any) -> Any:
    """Return the registered object that a section names."""
    if content is None:
        raise _UnusableSection(
            RecipeProblem((section,), f"is missing. Write '{section}: NAME'.", code="recipe.missing")
        )
    if not isinstance(content, dict):
        raise _UnusableSection(
            RecipeProblem((section,), "must be a name, or a mapping with a name.", content, code="recipe.wrong-type")
        )
    if "name" not in content:
        raise _UnusableSection(RecipeProblem((section, "name"), "is missing.", code="recipe.missing"))
    if not isinstance(name := content["name"], str):
        raise _UnusableSection(RecipeProblem((section, "name"), "must be a name.", name, code="recipe.wrong-type"))
    try:
        if section == "backbone":
            content["name"] = name = registry.expand_folder_name(name)
        return load_plugin(section, name)
    except UsageError as error:
        hint = (suggest_source_prefix(name) if section == "dataset" else "") or error.what_to_do
        raise _UnusableSection(
            RecipeProblem((section, "name"), f"{error.what} {hint}".strip(), name, code="recipe.unknown-name")
        ) from error


def _find_package(section: str, name: str) -> str:
    """Return the installed package of the plugin that a section names."""
    if section == "backbone":
        return registry.find_backbone_package(name)
    return registry.find_package(_GROUPS[section], name)


def _validate_json(model: type[ModelT], values: Any) -> ModelT:
    """Validate values by the rules of JSON: a list may become a tuple, but "32" is not a number and true is not 1."""
    return model.model_validate_json(json.dumps(values, default=str), strict=True)
