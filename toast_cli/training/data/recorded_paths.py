"""Data and weights of a run, found where the run was started if the command is used in another folder."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from toast_cli.data.paths import find_unicode_form
from toast_cli.recipe.parse import replace_recipe_fields
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.run_folder import WorkingFolders, read_working_folders


def find_recorded_paths(recipe: Recipe, run: Path) -> Recipe:
    """Return the recipe of a run with absolute paths where they are relative to the folder that it was started in.

    Paths that do not exist there any more stay as they are, to be looked up from the current folder.
    """
    started = read_working_folders(run)
    if started is None or started.folder == Path.cwd():
        return recipe
    changes: dict[str, Any] = {}
    dataset = recipe.dataset.model_dump(mode="json")
    for name in recipe.dataset.list_path_fields():
        if dataset[name] is not None and (found := _find_data(dataset[name], recipe.data_dir, started)) is not None:
            changes["dataset"] = dataset = {**dataset, name: str(found)}
    for name in recipe.dataset.list_path_key_fields():
        named = {_find_key(key, recipe.data_dir, started): value for key, value in dataset[name].items()}
        if named != dataset[name]:
            changes["dataset"] = dataset = {**dataset, name: named}
    if started.data_dir.is_dir() and (recipe.data_dir is None or not Path(recipe.data_dir).expanduser().is_absolute()):
        changes["data_dir"] = str(started.data_dir)
    weights = recipe.backbone.weights
    if weights not in (None, "none") and (started.folder / Path(weights).expanduser()).exists():
        weights = str(started.folder / Path(weights).expanduser())
        changes["backbone"] = recipe.backbone.model_dump(mode="json") | {"weights": weights}
    return replace_recipe_fields(recipe, **changes) if changes else recipe


def _find_key(key: str, data_dir: str | None, started: WorkingFolders) -> str:
    """Return a key with the absolute path of the data that it names, alone or after a word and a colon."""
    word, colon, path = key.partition(":")
    if (found := _find_data(key, data_dir, started)) is not None:
        return str(found)
    found = _find_data(path, data_dir, started) if colon else None
    return key if found is None else f"{word}:{found}"


def _find_data(path: str, data_dir: str | None, started: WorkingFolders) -> Path | None:
    """Return the absolute path of data in the folders of a run, looked up as the run did; None if it is not there."""
    if "://" in path:
        return None
    places = [find_unicode_form(folder / Path(path).expanduser()) for folder in (started.folder, started.data_dir)]
    return next(filter(_exists, places if data_dir is None else reversed(places)), None)


def _exists(path: Path) -> bool:
    """Return whether a file or folder exists, or the folder of a pattern such as `train-*.tar`."""
    is_pattern = glob.has_magic(path.name) or "{" in path.name
    return path.exists() or (is_pattern and path.parent.is_dir())
