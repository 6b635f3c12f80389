"""From YAML to a checked recipe: every section by the options of the name it chose, all problems reported at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from toast_cli import registry
from toast_cli.backbones.image_options import ImageOptions, PixelOptions
from toast_cli.recipe.overrides import apply_overrides
from toast_cli.recipe.partial_recipe import SECTIONS, Draft, Loc, meant, named
from toast_cli.recipe.safe_yaml import LARGEST, parse_recipe
from toast_cli.recipe.schema import Recipe, TrainingOptions
from toast_cli.recipe.validation_errors import Problem, explain, refuse
from toast_cli.utils.config import Named
from toast_cli.utils.errors import UsageError

_GROUPS = {"dataset": registry.SOURCES, "method": registry.METHODS, "task": registry.TASKS}
_STAND_INS = {section: {"name": "-"} for section in SECTIONS}


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        UsageError: the file cannot be read, or is not a valid recipe; every problem is named with its line.
        ToastError: a plugin that the recipe needs fails to load.
    """
    return build(parse_recipe(read_text(path), str(path)))


def build_recipe(values: Mapping[str, Any], places: Mapping[Loc, str], origin: str) -> Recipe:
    """The recipe that plain values stand for; `places` says where each was written, `origin` what to call the whole."""
    return build(Draft(dict(values), dict(places), origin))


def build(draft: Draft) -> Recipe:
    """The recipe that a draft stands for, or one error with everything that is wrong with it."""
    task = draft.values.setdefault("task", {})
    if isinstance(task, dict):
        task.setdefault("name", _task_of(draft.name("dataset")))
    models: dict[str, type[BaseModel]] = {"": Recipe, "images": ImageOptions, "training": TrainingOptions}
    problems: list[Problem] = []
    for section in SECTIONS:
        try:
            models[section] = _options(section, draft)
        except _Unusable as unusable:
            problems.append(unusable.problem)
    sections = {}
    for section in SECTIONS:
        if section in models:
            try:
                sections[section] = _checked(models[section], draft.values[section])
            except ValidationError as error:
                problems += explain(error, (section,), draft, models)
    try:
        recipe = _checked(Recipe, {**draft.values, **_STAND_INS})
    except ValidationError as error:
        problems += explain(error, (), draft, models)
    if not problems:
        problems += _unfit_task(sections["dataset"].name, sections["task"])
    if problems:
        raise refuse(problems, draft)
    return recipe.model_copy(update=sections)


def check_start(recipe: Recipe) -> None:
    """Refuse a recipe whose method would begin from nothing; a pre-tuned artifact may still be given to it elsewhere.

    Raises:
        UsageError: so it would.
    """
    _registered("method", recipe.method.name).check(recipe.method, recipe.init_from is not None)


def build_dataset(choice: str, fields: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Named:
    """The checked settings of a data set alone, as `--dataset` names it, with further fields of its own.

    Raises:
        UsageError: there is no such data set, a field is wrong, or an override is for another section.
    """
    draft = Draft({"dataset": {**named("dataset", choice), **(fields or {})}}, origin=choice, kind="data set")
    apply_overrides(draft, overrides)
    others = sorted(set(draft.values) - {"dataset"})
    if others:
        raise UsageError(
            f"Only the data set can be changed here, not {others[0]}.", what_to_do="Write dataset.KEY=VALUE."
        )
    try:
        options = _options("dataset", draft)
        return _checked(options, draft.values["dataset"])
    except _Unusable as unusable:
        raise refuse([unusable.problem], draft) from unusable
    except ValidationError as error:
        raise refuse(explain(error, ("dataset",), draft, {"dataset": options}), draft) from error


def read_text(path: Path) -> str:
    """A recipe file's text.

    Raises:
        UsageError: it is missing, unreadable, far too large or not UTF-8.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path} is larger than {LARGEST // 1_000_000} MB.", "A recipe is a short YAML file.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"The recipe {path} cannot be read.", error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The recipe {path} cannot be read.", "It is not UTF-8 text.") from error


class _Unusable(Exception):
    """A section whose options are not even known."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def _task_of(dataset: str | None) -> str:
    """What a data set's samples are for, where nobody says; a name that is not registered is refused elsewhere."""
    if dataset in registry.names(registry.SOURCES):
        return registry.load(registry.SOURCES, str(dataset)).task
    return "classification"


def _unfit_task(dataset: str, task: Named) -> list[Problem]:
    """Return what is wrong with a task that needs a label for every pixel of other data, or the other way round."""
    source = registry.load(registry.SOURCES, dataset)
    labels_pixels = issubclass(registry.load(registry.TASKS, source.task).options, PixelOptions)
    if labels_pixels == isinstance(task, PixelOptions):
        return []
    if labels_pixels:
        text = f"{dataset} labels pixels. Use segmentation or token-labels, or leave task.name out."
    else:
        text = (
            f"it needs a label for every pixel, and {dataset} has none. "
            "Use voc, ade20k, masks:PATH or demo-segmentation, or leave task.name out."
        )
    return [Problem(("task", "name"), text, task.name)]


def _options(section: str, draft: Draft) -> type[BaseModel]:
    """The options class that checks a section, found by the section's name."""
    content = draft.values.get(section)
    if content is None:
        raise _Unusable(Problem((section,), f"is missing. Write '{section}: NAME'."))
    if not isinstance(content, dict):
        raise _Unusable(Problem((section,), "must be a name, or a mapping that holds one.", content))
    name = draft.name(section)
    if name is None:
        given = {"value": content["name"]} if "name" in content else {}
        raise _Unusable(Problem((section, "name"), "must be a name." if given else "is missing.", **given))
    try:
        options = registry.backbone_card(name).options if section == "backbone" else _registered(section, name).options
    except UsageError as error:
        hint = (meant(name) if section == "dataset" else "") or error.what_to_do
        raise _Unusable(Problem((section, "name"), f"{error.what} {hint}".strip(), name)) from error
    return options


def _registered(section: str, name: str) -> Any:
    return registry.load(_GROUPS[section], name)


def _checked(model: type[BaseModel], values: Any) -> Any:
    """Validate by JSON's rules: a list may become a tuple, but "32" is no number and true is not 1."""
    return model.model_validate_json(json.dumps(values, default=str), strict=True)
