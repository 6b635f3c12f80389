"""The recipes that come with toast: YAML files in a folder, named by their path without the ending."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toast_cli.recipe.parse import read_recipe_text
from toast_cli.utils.errors import UsageError, did_you_mean

RECIPE_SUFFIXES = (".yaml", ".yml")


SUITES_FOLDER = "suites"
"""Folder of suites among the recipes; `toast_cli.bench` reads them."""


@dataclass(frozen=True)
class RecipeText:
    """A recipe's text, its name, what to call it in messages, and whether it came with toast."""

    name: str
    text: str
    origin: str
    built_in: bool


def get_recipes_folder() -> Path:
    """The folder of built-in recipes: inside an installed package, or beside it in a source checkout."""
    package = Path(__file__).parent.parent
    inside = package / "_recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def list_recipes() -> list[str]:
    """Return the names of all built-in recipes, sorted, such as `fgvc/cub-vit_b16-toast`."""
    return [name for name in _list_yaml_files(get_recipes_folder()) if not name.startswith(f"{SUITES_FOLDER}/")]


def list_suites() -> list[str]:
    """Return the names of all built-in suites, sorted."""
    return _list_yaml_files(get_recipes_folder() / SUITES_FOLDER)


def get_suite_path(name: str) -> Path:
    """Return the file of one of `suite_names`."""
    return get_recipes_folder() / SUITES_FOLDER / f"{name}.yaml"


def _list_yaml_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def read_builtin_recipe(name: str) -> str:
    """The text of one of `names`."""
    return read_recipe_text(get_recipes_folder() / f"{name}.yaml")


def find_recipe(name_or_path: str) -> RecipeText:
    """A recipe by file or by built-in name; a file that exists wins.

    Raises:
        UsageError: there is neither; the nearest built-in name is offered.
    """
    path = Path(name_or_path)
    if path.is_file():
        return RecipeText(path.stem, read_recipe_text(path), name_or_path, built_in=False)
    if path.exists() and path.suffix in RECIPE_SUFFIXES:
        raise UsageError(
            f"{path} is no recipe.",
            "It is no regular file: a folder, a pipe or a device.",
            code="recipe.not-a-regular-file",
        )
    known = list_recipes()
    name = name_or_path
    for ending in RECIPE_SUFFIXES:
        name = name.removesuffix(ending)
    if name in known:
        return RecipeText(name, read_builtin_recipe(name), f"{name}.yaml", built_in=True)
    what = f"There is no file {path}." if path.suffix in RECIPE_SUFFIXES else f"There is no recipe '{name_or_path}'."
    listing = "" if len(known) <= 12 else "'toast recipes ls' lists all of them."
    raise UsageError(what, what_to_do=f"{did_you_mean(name, known)} {listing}".strip(), code="recipe.unknown-recipe")


def get_header_comment(text: str) -> str:
    """The comment block that opens a recipe, without its number signs."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return "\n".join(lines).strip()
