"""Built-in recipes: YAML files in a folder, named by their relative path without the suffix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toast_cli.recipe.parse import read_recipe_text
from toast_cli.utils.errors import UsageError, did_you_mean

RECIPE_SUFFIXES = (".yaml", ".yml")


SUITES_FOLDER = "suites"
"""Subfolder with the suites of `toast bench`, which `toast_cli.bench` reads."""


@dataclass(frozen=True)
class RecipeText:
    """The text of a recipe, its name, the name used for it in messages, and whether it is built in."""

    name: str
    text: str
    origin: str
    built_in: bool


def get_recipes_folder() -> Path:
    """Return the folder of built-in recipes: inside an installed package, next to it in a source checkout."""
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
    """Return the path of a built-in suite, one of `list_suites()`."""
    return get_recipes_folder() / SUITES_FOLDER / f"{name}.yaml"


def _list_yaml_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def read_builtin_recipe(name: str) -> str:
    """Return the text of a built-in recipe, one of `list_recipes()`."""
    return read_recipe_text(get_recipes_folder() / f"{name}.yaml")


def find_recipe(name_or_path: str) -> RecipeText:
    """Return the recipe in a file or the built-in recipe of that name. An existing file has precedence.

    Raises:
        UsageError: There is no such file or built-in recipe. The message offers the nearest built-in name.
    """
    path = Path(name_or_path)
    if path.is_file():
        return RecipeText(path.stem, read_recipe_text(path), name_or_path, built_in=False)
    if path.exists() and path.suffix in RECIPE_SUFFIXES:
        raise UsageError(
            f"{path} is not a recipe.",
            "It is not a regular file but a folder, a pipe or a device.",
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
    """Return the comment block at the top of a recipe, without the number signs."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return "\n".join(lines).strip()
