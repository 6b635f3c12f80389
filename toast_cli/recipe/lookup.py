"""Resolution of the recipe of a command from a recipe, a data set, a backbone, a method, or nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

from toast_cli import registry
from toast_cli.recipe.builtin import RecipeText, find_recipe, list_recipes, read_builtin_recipe
from toast_cli.recipe.overrides import apply_overrides
from toast_cli.recipe.parse import (
    describe_deprecated_fields,
    load_plugin,
    replace_recipe_fields,
    validate_partial_recipe,
)
from toast_cli.recipe.safe_yaml import parse_recipe, parse_value
from toast_cli.recipe.schema import Recipe
from toast_cli.recipe.unvalidated_recipe import SECTIONS, PartialRecipe, expand_shorthand, suggest_source_prefix
from toast_cli.utils.errors import ToastError, UsageError, did_you_mean
from toast_cli.utils.hashing import has_checksum_line, is_checksum_valid

DEMO_FOLDER = "demo"
GENERAL_FOLDER = "general"
PRETUNE_FOLDER = "pretune"
LANGUAGE_FOLDER = "language"
"""Folder of recipes whose learning rate and batch size suit the size of their backbone, and so no other backbone."""

CONTINUED_RATE = 0.1
"""Learning rate of a run that continues from a tuned model, as a share of that model's own.

Measured on photographs of birds with ViT-Tiny and TOAST: see docs/reports/results.md.
"""
DEFAULT_METHOD = "toast"
DEFAULT_BACKBONE = "vit_b16"
DEFAULT_TASK = "classification"


@dataclass(frozen=True)
class RecipeMatch:
    """A built-in recipe, and which of the requested `backbone` and `method` differ from it."""

    name: str
    differs: tuple[str, ...]


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe ready to run, its name, a sentence about its source, and further messages for the user."""

    recipe: Recipe
    name: str
    source: str
    messages: list[str]


def find_nearest_recipe(backbone: str | None, dataset: str, method: str | None) -> RecipeMatch | None:
    """Return the nearest built-in recipe for a data set: by method, then by backbone, then alphabetically.

    If nothing is requested or nothing matches, recipes with the method `toast` on the backbone of the paper's main
    tables are preferred. A recipe of a language model is used for that model only.
    """
    requested = {"method": method, "backbone": backbone}
    candidates = []
    for name in list_recipes():
        if name.startswith(
            (f"{GENERAL_FOLDER}/", f"{PRETUNE_FOLDER}/")
        ):  # for data sets without a recipe, and for another verb
            continue
        made_for = _read_section_names(name, read_builtin_recipe(name))
        if made_for["dataset"] != expand_shorthand("dataset", dataset)["name"]:
            continue
        differs = tuple(
            section for section, name in requested.items() if name is not None and made_for[section] != name
        )
        if name.startswith(f"{LANGUAGE_FOLDER}/") and "backbone" in differs:
            continue
        unlike = made_for["method"] != (method or DEFAULT_METHOD)
        candidates.append((unlike, "backbone" in differs, made_for["backbone"] != DEFAULT_BACKBONE, name, differs))
    if not candidates:
        return None
    *_, name, differs = min(candidates)
    return RecipeMatch(name, differs)


@cache
def _read_section_names(name: str, text: str) -> Mapping[str, str | None]:
    """Return the names in the sections of a built-in recipe. Cached, as a suite reads every recipe for every run."""
    draft = parse_recipe(text, f"{name}.yaml")
    return {section: draft.get_section_name(section) for section in SECTIONS}


def resolve_recipe(
    recipe: str | None = None,
    backbone: str | None = None,
    dataset: str | None = None,
    method: str | None = None,
    weights: str | None = None,
    data_dir: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    init_from: str | None = None,
    training: Mapping[str, str] | None = None,
    demo: str = DEMO_FOLDER,
    overrides: Sequence[str] = (),
    start: Mapping[str, Any] | None = None,
) -> ResolvedRecipe:
    """Return the recipe of a command line.

    The base is the recipe given by name, else the nearest built-in recipe for the data set, else the general recipe
    of the method; without a data set, it is the demo. Options are applied first, dotted overrides after them.
    `training` holds the texts of options that set training fields, by field.

    With `start`, the recipe of the tuned model that `init_from` names, that recipe is the base unless one is given by
    name. Its backbone and method are used unless an option or an override names others.

    Raises:
        UsageError: There is no such recipe, or the result is invalid. Values are traced to a line, option or override.
    """
    if start is not None and recipe is None:
        draft, name, messages = _draft_from_start(start, dataset)
        source, is_recorded = f"Recipe: that of the start, {init_from or 'init_from'}", True
    else:
        found, source, messages = _choose_base_recipe(recipe, backbone, dataset, method, demo)
        draft, name = parse_recipe(found.text, found.origin), found.name
        is_recorded = has_checksum_line(found.text)  # nobody can rename a field in a finished run
        if start is not None:
            messages += _use_sections_of_start(draft, start, (("backbone", backbone), ("method", method)), overrides)
    before = deepcopy(draft.values)
    made_for, made_on = draft.get_section_name("method"), draft.get_section_name("backbone")
    dropped = []
    for section, choice in (("backbone", backbone), ("dataset", dataset), ("method", method)):
        if choice is not None:
            dropped += draft.set_section_name(section, choice, f"from --{section}")
    options: dict[tuple[str, ...], Any] = {
        ("backbone", "weights"): weights,
        ("data_dir",): data_dir,
        ("seed",): seed,
        ("device",): device,
        ("precision",): precision,
        ("init_from",): init_from,
        **{
            ("training", name): parse_value(text, f"--{name.replace('_', '-')}")
            for name, text in (training or {}).items()
        },
    }
    for loc, value in options.items():
        if value is not None:
            draft.set_value(loc, value, f"from --{loc[-1].replace('_', '-')}")
    if "resize" in draft.values.get("images", {}) and draft.get_section_name("backbone") != made_on:
        # A resize size that suits the input of one backbone does not suit another.
        del draft.values["images"]["resize"]
        dropped.append("images.resize")
    dropped += apply_overrides(draft, overrides)
    if init_from is None and not any(override.startswith("init_from=") for override in overrides):
        dropped += _drop_unusable_init(draft, overrides, same_backbone=draft.get_section_name("backbone") == made_on)
    dropped = [name for name in dropped if not _is_default(before, name)]
    if dropped:
        messages.append(f"Dropped because they belong to what was replaced: {', '.join(dropped)}.")
    if made_for is not None and draft.get_section_name("method") != made_for:
        messages.append(
            f"The training settings of {name} were made for {made_for}, not {draft.get_section_name('method')}."
        )
    messages += [] if is_recorded else describe_deprecated_fields(draft)
    return ResolvedRecipe(validate_partial_recipe(draft), name, source, messages)


def _is_default(values: Mapping[str, Any], name: str) -> bool:
    """Return whether a field of a plugin's section, such as `dataset.val_fraction`, has its default value."""
    section, _, key = name.partition(".")
    content = values.get(section)
    if section not in SECTIONS or not isinstance(content, dict):
        return False
    try:
        field, value = load_plugin(section, content["name"]).options.model_fields[key], content[key]
    except (KeyError, ToastError):  # an unknown field or plugin, which the validation names
        return False
    default = field.get_default(call_default_factory=True)
    return json.dumps(default, default=str) == json.dumps(value, default=str)


def _draft_from_start(start: Mapping[str, Any], dataset: str | None) -> tuple[PartialRecipe, str, list[str]]:
    """Return the recipe of a tuned model as a draft, without what belongs to its machine, its name, and messages.

    The task of a data set of another kind is that data set's own. The learning rates are a tenth of those of the start.
    """
    values = {**start, "init_from": None, "pretuning": None, "device": "auto"}
    messages: list[str] = []
    if start.get("init_from") in (None, "shipped"):  # a run that was continued itself has the lower rates already
        training = values["training"] = dict(start["training"])
        for name in ("lr", "head_lr"):
            if isinstance(training.get(name), float):
                training[name] = float(f"{training[name] * CONTINUED_RATE:.2g}")
        messages.append(
            f"The learning rate is {training['lr']:g}, a tenth of that of the start: it begins near a minimum, from "
            "which the full rate would lead away. --lr changes it."
        )
    source = expand_shorthand("dataset", dataset or start["dataset"]["name"])["name"]
    if source in registry.list_names(registry.SOURCES):
        own, earlier = (registry.load_entry(registry.SOURCES, name).task for name in (source, start["dataset"]["name"]))
        if own != earlier and start["task"]["name"] != own:
            values["task"] = {"name": own}
            messages.append(f"The task is {own}, that of {source}: the start was tuned for {start['task']['name']}.")
    return PartialRecipe(values, origin="the recipe of the start"), "the start", messages


def _use_sections_of_start(
    draft: PartialRecipe,
    start: Mapping[str, Any],
    options: Sequence[tuple[str, str | None]],
    overrides: Sequence[str],
) -> list[str]:
    """Put the backbone and the method of a tuned model into a draft, unless the user names them; return messages."""
    messages = []
    for section, choice in options:
        named = choice is not None or any(
            override.startswith((f"{section}=", f"{section}.name=")) for override in overrides
        )
        if named:
            continue
        before, now = draft.get_section_name(section), start[section]["name"]
        draft.values[section] = dict(start[section])
        if before != now:
            messages.append(f"The {section} is {now}, that of the start, and not {before} of the recipe.")
    return messages


def _drop_unusable_init(draft: PartialRecipe, overrides: Sequence[str], same_backbone: bool) -> list[str]:
    """Drop the recipe's own `init_from` if it cannot be used with this command line.

    It cannot be used if another start is requested, if the method has no start, or if the shipped artifact of the
    recipe's backbone would be combined with other weights.
    """
    if draft.values.get("init_from") is None:
        return []
    another = any(override.startswith("method.start=") for override in overrides)
    name = draft.get_section_name("method")
    known = name is not None and name in registry.list_names(registry.METHODS)
    without = known and "start" not in registry.load_entry(registry.METHODS, str(name)).options.model_fields
    backbone = draft.values.get("backbone")
    weights = backbone.get("weights") if isinstance(backbone, dict) else None
    foreign = draft.values["init_from"] == "shipped" and (not same_backbone or weights is not None)
    if not (another or without or foreign):
        return []
    del draft.values["init_from"]
    return ["init_from"]


def _choose_base_recipe(
    recipe: str | None, backbone: str | None, dataset: str | None, method: str | None, demo: str
) -> tuple[RecipeText, str, list[str]]:
    """Return the base recipe, a sentence about its source, and messages about the choice."""
    if recipe is not None:
        found = find_recipe(recipe)
        source = f"Recipe: {found.name} (built in)" if found.built_in else f"Recipe: {recipe}"
        return found, source, [] if is_checksum_valid(found.text) else [format_changed_notice(found)]
    if dataset is None:
        found = _find_method_recipe(demo, method)
        return found, f"Recipe: {found.name} (built in)", []
    match = find_nearest_recipe(backbone, dataset, method)
    if match is not None:
        options = {"method": method, "backbone": backbone}
        messages = [
            f"No built-in recipe for {dataset} has {section} {options[section]}: it replaces that of {match.name}."
            for section in match.differs
        ]
        return find_recipe(match.name), f"Recipe: {match.name} (built in, for this data set)", messages
    chosen = expand_shorthand("dataset", dataset)
    source = chosen["name"]
    if source not in registry.list_names(registry.SOURCES):
        hint = suggest_source_prefix(dataset) or did_you_mean(source, registry.list_names(registry.SOURCES))
        raise UsageError(
            f"There is no data set '{source}' (from --dataset).", what_to_do=hint, code="recipe.unknown-name"
        )
    if backbone is None:
        raise UsageError(
            f"There is no built-in recipe for {dataset}, so a backbone is required.",
            what_to_do="Add --backbone; 'toast backbones' lists them.",
            code="recipe.missing-backbone",
        )
    task = registry.load_entry(registry.SOURCES, source).get_task(chosen)
    found = _find_method_recipe(GENERAL_FOLDER, method, "" if task == DEFAULT_TASK else f"{task}-")
    return found, f"Recipe: {found.name} (built in, for any data set)", []


def format_changed_notice(recipe: RecipeText) -> str:
    """Return the notice about a recipe that a run wrote and that was changed afterwards."""
    return (
        f"{recipe.origin} was written by a run and has been edited or damaged since: its SHA-256 does not match. "
        "It is used as it is. Remove its first line, which holds the SHA-256, to make it a recipe of your own."
    )


def _find_method_recipe(folder: str, method: str | None, task: str = "") -> RecipeText:
    name = f"{folder}/{task}{method or DEFAULT_METHOD}"
    return find_recipe(name if name in list_recipes() else f"{folder}/{task}{DEFAULT_METHOD}")


def resolve_recorded_name(name: str, toast_version: str) -> str:
    """Return the current name of the backbone that a version of toast recorded as `name`."""
    if name not in registry.list_names(registry.BACKBONES):
        return name
    release = _parse_release(toast_version)
    for last, present in registry.load_backbone_card(name).superseded.items():
        if release is not None and release <= (_parse_release(last) or ()):
            return str(present)
    return name


def resolve_recorded_backbone(recipe: Recipe, toast_version: str) -> Recipe:
    """Return the recipe with the backbone that its name meant in the version of toast that recorded it."""
    name = resolve_recorded_name(recipe.backbone.name, toast_version)
    if name == recipe.backbone.name:
        return recipe
    return replace_recipe_fields(recipe, backbone={**recipe.backbone.model_dump(mode="json"), "name": name})


def _parse_release(version: str) -> tuple[int, ...] | None:
    """Return the first two numbers of a version, such as (0, 1) for 0.1.3, or None if there are none."""
    parts = version.split(".")[:2]
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else None
