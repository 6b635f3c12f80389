"""Which recipe a command means: from a recipe, a data set, a backbone, a method, or nothing at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from toast_cli import registry
from toast_cli.recipe.builtin import RecipeText, find, header, names, text_of
from toast_cli.recipe.checksum import seal_holds
from toast_cli.recipe.overrides import apply_overrides
from toast_cli.recipe.parse import build
from toast_cli.recipe.partial_recipe import SECTIONS, Draft, meant, named
from toast_cli.recipe.safe_yaml import parse_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.utils.errors import UsageError, did_you_mean

__all__ = ["Match", "Resolved", "find", "for_pair", "header", "names", "resolve"]

DEMO = "demo"
GENERAL = "general"
PRETUNE = "pretune"
SIZED = "language"
"""Recipes whose step and batch are for a model of its backbone's size, and so for no other backbone."""

DEFAULT_METHOD = "toast"
DEFAULT_BACKBONE = "vit_b16"
DEFAULT_TASK = "classification"


@dataclass(frozen=True)
class Match:
    """A built-in recipe and which of the wanted `backbone` and `method` it does not have."""

    name: str
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Resolved:
    """A recipe ready to run, its name, a sentence on where it came from, and what else a user should know."""

    recipe: Recipe
    name: str
    source: str
    messages: list[str]


def for_pair(backbone: str | None, dataset: str, method: str | None) -> Match | None:
    """The built-in recipe for a data set that comes nearest: by method, then by backbone, then by the alphabet.

    Where nothing is wanted, or nothing fits, TOAST's own are preferred, on the backbone of the paper's main tables. A
    language model's is for that model alone.
    """
    wanted = {"method": method, "backbone": backbone}
    candidates = []
    for name in names():
        if name.startswith((f"{GENERAL}/", f"{PRETUNE}/")):  # for data sets without a recipe, and for another verb
            continue
        made_for = _made_for(name, text_of(name))
        if made_for["dataset"] != named("dataset", dataset)["name"]:
            continue
        differs = tuple(section for section, want in wanted.items() if want is not None and made_for[section] != want)
        if name.startswith(f"{SIZED}/") and "backbone" in differs:
            continue
        unlike = made_for["method"] != (method or DEFAULT_METHOD)
        candidates.append((unlike, "backbone" in differs, made_for["backbone"] != DEFAULT_BACKBONE, name, differs))
    if not candidates:
        return None
    *_, name, differs = min(candidates)
    return Match(name, differs)


@cache
def _made_for(name: str, text: str) -> Mapping[str, str | None]:
    """The names in the sections of a built-in recipe. Kept, as a suite asks for those of every recipe for every run."""
    draft = parse_recipe(text, f"{name}.yaml")
    return {section: draft.name(section) for section in SECTIONS}


def resolve(
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
    demo: str = DEMO,
    overrides: Sequence[str] = (),
) -> Resolved:
    """The recipe that a command line means.

    A named recipe, else the nearest built-in one for the data set, else the general one of the method; without a
    data set, the demo. Options are then put in, dotted overrides after them, and the whole is checked.

    Raises:
        UsageError: nothing fits, or the result is not valid; values are traced to their line, option or override.
    """
    found, source, messages = _chosen(recipe, backbone, dataset, method, demo)
    draft = parse_recipe(found.text, found.origin)
    made_for, made_on = draft.name("method"), draft.name("backbone")
    dropped = []
    for section, choice in (("backbone", backbone), ("dataset", dataset), ("method", method)):
        if choice is not None:
            dropped += draft.choose(section, choice, f"from --{section}")
    _put(draft, ("backbone", "weights"), weights, "--weights")
    _put(draft, ("data_dir",), data_dir, "--data-dir")
    _put(draft, ("seed",), seed, "--seed")
    _put(draft, ("device",), device, "--device")
    _put(draft, ("precision",), precision, "--precision")
    _put(draft, ("init_from",), init_from, "--init-from")
    if "resize" in draft.values.get("images", {}) and draft.name("backbone") != made_on:
        # Pixels that suit one backbone's input suit no other's.
        del draft.values["images"]["resize"]
        dropped.append("images.resize")
    dropped += apply_overrides(draft, overrides)
    if init_from is None and not any(override.startswith("init_from=") for override in overrides):
        dropped += _unfit_start(draft, overrides, same_backbone=draft.name("backbone") == made_on)
    if dropped:
        messages.append(f"Left out, as they belonged to what was replaced: {', '.join(dropped)}.")
    if made_for is not None and draft.name("method") != made_for:
        messages.append(f"The training settings of {found.name} were made for {made_for}, not {draft.name('method')}.")
    return Resolved(build(draft), found.name, source, messages)


def _unfit_start(draft: Draft, overrides: Sequence[str], same_backbone: bool) -> list[str]:
    """Drop the recipe's own `init_from` where the command line leaves it nothing to start.

    That is: another start is asked for, the method has none, or what comes with the recipe's backbone would meet other
    weights.
    """
    if draft.values.get("init_from") is None:
        return []
    another = any(override.startswith("method.start=") for override in overrides)
    name = draft.name("method")
    known = name is not None and name in registry.names(registry.METHODS)
    without = known and "start" not in registry.load(registry.METHODS, str(name)).options.model_fields
    backbone = draft.values.get("backbone")
    weights = backbone.get("weights") if isinstance(backbone, dict) else None
    foreign = draft.values["init_from"] == "shipped" and (not same_backbone or weights is not None)
    if not (another or without or foreign):
        return []
    del draft.values["init_from"]
    return ["init_from"]


def _chosen(
    recipe: str | None, backbone: str | None, dataset: str | None, method: str | None, demo: str
) -> tuple[RecipeText, str, list[str]]:
    """The recipe to start from, the sentence that says so, and what to say about the choice."""
    if recipe is not None:
        found = find(recipe)
        source = f"Recipe: {found.name} (built in)" if found.built_in else f"Recipe: {recipe}"
        return found, source, [] if seal_holds(found.text) else [changed(found)]
    if dataset is None:
        found = _of_method(demo, method)
        return found, f"Recipe: {found.name} (built in)", []
    match = for_pair(backbone, dataset, method)
    if match is not None:
        options = {"method": method, "backbone": backbone}
        messages = [
            f"No built-in recipe for {dataset} has {section} {options[section]}: it is put into {match.name}."
            for section in match.differs
        ]
        return find(match.name), f"Recipe: {match.name} (built in, for this data set)", messages
    source = named("dataset", dataset)["name"]
    if source not in registry.names(registry.SOURCES):
        hint = meant(dataset) or did_you_mean(source, registry.names(registry.SOURCES))
        raise UsageError(f"There is no data set '{source}' (from --dataset).", what_to_do=hint)
    if backbone is None:
        raise UsageError(
            f"There is no built-in recipe for {dataset}, so the backbone must be named.",
            what_to_do="Add --backbone; 'toast backbones' lists them.",
        )
    task = registry.load(registry.SOURCES, source).task
    found = _of_method(GENERAL, method, "" if task == DEFAULT_TASK else f"{task}-")
    return found, f"Recipe: {found.name} (built in, for any data set)", []


def changed(recipe: RecipeText) -> str:
    """What is to be said of a recipe that a run wrote, and that is another now."""
    return (
        f"{recipe.origin} is not what a run wrote: by its sha256 it was changed since, or is damaged. "
        "It is taken as it is; without its first line, which holds that, it is a recipe of your own."
    )


def _of_method(folder: str, method: str | None, task: str = "") -> RecipeText:
    name = f"{folder}/{task}{method or DEFAULT_METHOD}"
    return find(name if name in names() else f"{folder}/{task}{DEFAULT_METHOD}")


def _put(draft: Draft, loc: tuple[str, ...], value: Any, option: str) -> None:
    if value is not None:
        draft.set(loc, value, f"from {option}")
