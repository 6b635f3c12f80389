"""`toast recipes`: list, show, copy and validate recipes, and print their JSON schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toast_cli.cli import options
from toast_cli.cli.options import CommandGroup

if TYPE_CHECKING:
    from toast_cli.recipe.schema import Recipe

USUAL_OPTIMIZERS = frozenset({"momentum", "adamw"})
"""Optimizers that need no trial step: they work on every device with every setting that the schema allows."""

app = typer.Typer(cls=CommandGroup, invoke_without_command=True, rich_markup_mode=None)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Built-in recipe, e.g. demo/toast, or YAML file.")
]


@app.callback()
def recipes(context: typer.Context) -> None:
    """List, show, copy and validate recipes."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("ls")
def print_recipes(as_json: options.JsonOption = False) -> None:
    """List the built-in recipes."""
    from toast_cli.cli.output.console import print_json, print_table
    from toast_cli.recipe import builtin
    from toast_cli.recipe.safe_yaml import parse_recipe

    rows = []
    for name in builtin.list_recipes():
        found = builtin.find_recipe(name)
        draft = parse_recipe(found.text, found.origin)
        sections = {section: draft.get_section_name(section) or "" for section in ("backbone", "dataset", "method")}
        rows.append({"name": name, **sections, "about": _get_first_sentence(builtin.get_header_comment(found.text))})
    if as_json:
        print_json(rows)
        return

    from rich import box
    from rich.table import Table

    table = Table("name", "backbone", "data set", "method", "about", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row.values())
    print_table(table)


@app.command("show")
def show_recipe(name: RecipeArgument) -> None:
    """Print a recipe, including its comments."""
    from toast_cli.cli.output.console import print_answer
    from toast_cli.recipe.builtin import find_recipe

    print_answer(find_recipe(name).text, end="")


@app.command("copy")
def copy_recipe(
    name: RecipeArgument,
    dest: Annotated[
        Path | None, typer.Argument(metavar="DEST", help="Target file or folder. [default: current folder]")
    ] = None,
) -> None:
    """Copy a recipe to a file for editing."""
    from toast_cli.cli.output.console import print_line
    from toast_cli.recipe.builtin import find_recipe
    from toast_cli.utils.errors import UsageError
    from toast_cli.utils.files import write_text

    found = find_recipe(name)
    target = dest or Path()
    if target.is_dir():
        target = target / f"{found.name.rpartition('/')[2]}.yaml"
    if target.exists():
        raise UsageError(
            f"{target} already exists.",
            "It was not changed.",
            "Choose another destination.",
            code="disk.already-exists",
        )
    write_text(target, found.text)
    print_line(str(target))


@app.command("validate")
def validate_recipes(
    files: Annotated[list[str], typer.Argument(metavar="RECIPE", help="YAML files or built-in recipes.")],
) -> None:
    """Validate recipes.

    Validates every file, also after an invalid one. The exit code is that of the worst error.
    """
    from toast_cli.cli.output.console import err, print_line
    from toast_cli.recipe.builtin import find_recipe
    from toast_cli.recipe.lookup import format_changed_notice
    from toast_cli.recipe.parse import validate_partial_recipe
    from toast_cli.recipe.safe_yaml import parse_recipe
    from toast_cli.utils.errors import ToastError
    from toast_cli.utils.hashing import is_checksum_valid

    worst = 0
    for file in files:
        try:
            found = find_recipe(file)
            recipe = validate_partial_recipe(parse_recipe(found.text, found.origin))
            recipe.plugins.method.check(recipe.method, recipe.init_from is not None)
            _check_optimizer(recipe)
        except ToastError as error:
            from toast_cli.cli.output.console import print_error

            print_error(error)
            worst = max(worst, error.exit_code)
        else:
            print_line(f"{file}: valid")
            if not is_checksum_valid(found.text):
                print_line(format_changed_notice(found), err)
    if worst:
        raise typer.Exit(worst)


def _check_optimizer(recipe: Recipe) -> None:
    """Check that the optimizer works here. Those of the built-in recipes do everywhere, so torch is not imported."""
    training = recipe.training
    is_open = isinstance(training.lr, str)  # chosen when a run starts
    if training.optimizer in USUAL_OPTIMIZERS and (is_open or training.min_lr <= training.lr):
        return
    import torch

    from toast_cli.training.optimization import check_optimizer

    uses_cuda = recipe.device != "cpu" and torch.cuda.is_available()
    check_optimizer(recipe.training, torch.device("cuda") if uses_cuda else None)


@app.command("schema")
def print_schema() -> None:
    """Print the JSON schema of recipes.

    Editors can use it for completion and validation.
    """
    from toast_cli.cli.output.console import print_json
    from toast_cli.recipe.json_schema import build_recipe_schema

    print_json(build_recipe_schema())


def _get_first_sentence(text: str) -> str:
    """Return the first sentence of a header, which may go over several lines."""
    return re.split(r"(?<=[.:])\s", " ".join(text.partition("\n\n")[0].split()), maxsplit=1)[0].rstrip(":")
