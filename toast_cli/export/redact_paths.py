"""What an export tells of where it was made: paths of this machine by their last part alone, for they are private."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

_PATH_IN_NAME = re.compile(r"(^|[:+])((?:~[^/]*)?/(?!/)[^+]*|[A-Za-z]:\\[^+]*)")
"""A path of its own, or behind a family's or a source's name: `llama:/models/mine`, `folder:/a+images:/b`."""


def for_others(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as it may be published: files and folders by their last part, no folder of data."""
    told = {name: _without_paths(value) for name, value in recipe.items()}
    for section, field in (("backbone", "weights"), ("dataset", "path")):
        value = (told.get(section) or {}).get(field)
        if isinstance(value, str) and ":" not in value:  # relative ones say no more than others, and no less
            told[section] = {**told[section], field: PurePath(value).name}
    name = recipe["backbone"]["name"]
    if folder_in(name) is not None:  # told as a folder, or its readers would look for it on a hub
        family, _, place = name.partition(":")
        told["backbone"] = {**told["backbone"], "name": f"{family}:./{_last(place)}"}
    if isinstance(told.get("init_from"), str):
        told["init_from"] = PurePath(told["init_from"]).name
    return {**told, "data_dir": None}


def folder_in(name: str) -> str | None:
    """The folder that a backbone's name is, as in `llama:/models/mine`; such a name is published without its place."""
    _, _, place = name.partition(":")
    folder = Path(place).expanduser()
    of_a_model = _without_paths(name) != name or (folder / "config.json").is_file()
    return place if place and of_a_model and folder.is_dir() else None


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        whole = re.fullmatch(r"(?:~[^/]*)?/(?!/).*|[A-Za-z]:\\.*", value, re.DOTALL)
        return _last(value) if whole else _PATH_IN_NAME.sub(lambda found: found[1] + _last(found[2]), value)
    if isinstance(value, Mapping):
        return {name: _without_paths(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(each) for each in value]
    return value


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
