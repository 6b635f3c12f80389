"""Digests of the files that a run reads: keys of runs contain digests instead of paths. Does not import PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from toast_cli.recipe.schema import Recipe
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.hashing import hash_file, hash_json

BUILTIN_WEIGHT_NAMES = {None, "none", "shipped"}
"""Values that name no file: default weights, random weights, and the artifact that comes with toast."""


def list_input_files(recipe: Recipe, known: Mapping[str, str]) -> dict[str, str]:
    """Return the input paths of a recipe by field, as given; paths in `known` need not exist any more."""
    paths = {"backbone.weights": recipe.backbone.weights, "init_from": recipe.init_from}
    model = recipe.backbone.name.partition(":")[2]
    if model in known or (model and (Path(model).expanduser() / "config.json").is_file()):
        paths["backbone.name"] = model  # as in llama:FOLDER
    return {field: path for field, path in paths.items() if path is not None and path not in BUILTIN_WEIGHT_NAMES}


def replace_paths_by_hashes(values: dict[str, Any], recipe: Recipe, known: Mapping[str, str]) -> None:
    """Replace the input paths in `values`, a recipe as plain data, by digests of their content.

    Args:
        values: changed in place.
        recipe: the same recipe, parsed.
        known: digests by path; other paths are read.

    Raises:
        UsageError: a path does not exist.
        ToastError: a file cannot be read.
    """
    for field, path in list_input_files(recipe, known).items():
        *above, last = field.split(".")
        place = values[above[0]] if above else values
        place[last] = place[last].removesuffix(path) + (known.get(path) or hash_input(field, path))


def hash_input(field: str, path: str) -> str:
    """Return a digest of the file or folder that a recipe's field names; for `init_from`, of its tensors.

    Raises:
        UsageError: the path does not exist.
        ToastError: a file cannot be read.
    """
    place = Path(path).expanduser()
    if field == "init_from":
        from toast_cli.storage.adapter import find_adapter_folder  # imports PyTorch, which other suites do not need
        from toast_cli.storage.pretuned import find_tensors_file

        is_adapter = (place / "adapter").is_dir() or (place / "adapter_config.json").is_file()
        place = find_adapter_folder(place) if is_adapter else find_tensors_file(place)
    try:
        if not place.is_dir():
            return _hash_input_file(place)
        # The files of a model lie directly in its folder. Model cards and hidden files do not affect results.
        files = [file for file in place.iterdir() if file.is_file() and file.suffix != ".md" and file.name[0] != "."]
        return hash_json({file.name: _hash_input_file(file) for file in files})
    except FileNotFoundError as error:
        raise UsageError(
            f"No such file or folder: {place}.",
            f"It is {field} of the suite's runs.",
            "Put it there, or give its path: if the content is the same, so are the runs.",
            code="bench.missing-input",
        ) from error
    except OSError as error:
        raise ToastError(
            f"Cannot read {place}.", error.strerror or str(error), code="bench.unreadable-input"
        ) from error


def _hash_input_file(file: Path) -> str:
    now = file.stat()
    return _hash_file_cached(file.absolute(), now.st_mtime_ns, now.st_size)


@cache
def _hash_file_cached(file: Path, written: int, size: int) -> str:
    """Return the digest of a file, which is read again only if its modification time or size changes."""
    return hash_file(file)
