"""What an export tells of where it was made: paths of this machine by their last part alone, for they are private."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

_PATH_IN_NAME = re.compile(r"(^|[:+])((?:~[^/]*)?/(?!/)[^+]*|[A-Za-z]:\\[^+]*)")
"""A path of its own, or behind a family's or a source's name: `llama:/models/mine`, `folder:/a+images:/b`."""


def redact_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as it may be published: files and folders by their last part, no folder of data."""
    told = {name: _redact_paths(value) for name, value in recipe.items()}
    for section, field in (("backbone", "weights"), ("dataset", "path")):
        value = (told.get(section) or {}).get(field)
        if isinstance(value, str) and ":" not in value:  # relative ones say no more than others, and no less
            told[section] = {**told[section], field: PurePath(value).name}
    name = recipe["backbone"]["name"]
    if get_backbone_folder(name) is not None:  # told as a folder, or its readers would look for it on a hub
        family, _, place = name.partition(":")
        told["backbone"] = {**told["backbone"], "name": f"{family}:./{_get_last_part(place)}"}
    if isinstance(told.get("init_from"), str):
        told["init_from"] = PurePath(told["init_from"]).name
    return {**told, "data_dir": None}


def get_backbone_folder(name: str) -> str | None:
    """The folder that a backbone's name is, as in `llama:/models/mine`; such a name is published without its place."""
    _, _, place = name.partition(":")
    folder = Path(place).expanduser()
    of_a_model = _redact_paths(name) != name or (folder / "config.json").is_file()
    return place if place and of_a_model and folder.is_dir() else None


def _redact_paths(value: Any) -> Any:
    if isinstance(value, str):
        whole = re.fullmatch(r"(?:~[^/]*)?/(?!/).*|[A-Za-z]:\\.*", value, re.DOTALL)
        return (
            _get_last_part(value)
            if whole
            else _PATH_IN_NAME.sub(lambda found: found[1] + _get_last_part(found[2]), value)
        )
    if isinstance(value, Mapping):
        return {name: _redact_paths(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_paths(each) for each in value]
    return value


def _get_last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
