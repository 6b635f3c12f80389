"""What a run starts from that lies in a file or a folder, by content: a key holds no paths. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from toast_cli.recipe.schema import Recipe
from toast_cli.storage.checksums import hash_file, hash_json
from toast_cli.utils.errors import ToastError, UsageError

BUILTIN_WEIGHT_NAMES = {None, "none", "shipped"}
"""Weights and starts that lie nowhere: the hub's or the plugin's own, random ones, those that come with toast."""


def list_input_files(recipe: Recipe, known: Mapping[str, str]) -> dict[str, str]:
    """The paths that a recipe starts from, as they were given, by field; those of `known` may be gone meanwhile."""
    given = {"backbone.weights": recipe.backbone.weights, "init_from": recipe.init_from}
    model = recipe.backbone.name.partition(":")[2]
    if model in known or (model and (Path(model).expanduser() / "config.json").is_file()):
        given["backbone.name"] = model  # as in llama:FOLDER
    return {field: path for field, path in given.items() if path is not None and path not in BUILTIN_WEIGHT_NAMES}


def replace_paths_by_hashes(values: dict[str, Any], recipe: Recipe, known: Mapping[str, str]) -> None:
    """Put what lies at its paths in place of them, into a recipe's plain values; `known` are digests by path.

    Raises:
        UsageError: nothing lies there.
        ToastError: it cannot be read.
    """
    for field, path in list_input_files(recipe, known).items():
        *above, last = field.split(".")
        place = values[above[0]] if above else values
        place[last] = place[last].removesuffix(path) + (known.get(path) or hash_input(field, path))


def hash_input(field: str, path: str) -> str:
    """A digest of what lies at a path that a recipe's field names; of a pre-tuned start, of its tensors.

    Raises:
        UsageError: nothing lies there.
        ToastError: it cannot be read.
    """
    place = Path(path).expanduser()
    if field == "init_from":
        from toast_cli.storage.pretuned import (
            find_tensors_file,  # imports torch, which a suite without does not need yet
        )

        place = find_tensors_file(place)
    try:
        if not place.is_dir():
            return _hash_input_file(place)
        # Directly in it lies a model; what describes it decides no number.
        files = [file for file in place.iterdir() if file.is_file() and file.suffix != ".md" and file.name[0] != "."]
        return hash_json({file.name: _hash_input_file(file) for file in files})
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no file or folder {place}.",
            f"{field} of the suite's runs names it.",
            "Put it there, or name the place where it is: the same content makes the same runs.",
            code="bench.missing-input",
        ) from error
    except OSError as error:
        raise ToastError(
            f"{place} cannot be read.", error.strerror or str(error), code="bench.unreadable-input"
        ) from error


def _hash_input_file(file: Path) -> str:
    now = file.stat()
    return _hash_file_cached(file.absolute(), now.st_mtime_ns, now.st_size)


@cache
def _hash_file_cached(file: Path, written: int, size: int) -> str:
    """A large file is read once, unless it was written since."""
    return hash_file(file)
