"""Removal of local paths from recipes before an export. Only the last part of a path is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from toast_cli.utils.hub import REPOSITORY_ID, is_repository_id

if TYPE_CHECKING:
    from toast_cli.storage.adapter import AdapterConfig
    from toast_cli.storage.load_model import LoadedModel

_PATH_IN_NAME = re.compile(r"(^|[:+])((?:~[^/]*)?/(?!/)[^+]*|[A-Za-z]:\\[^+]*)")
"""A path, alone or after the name of a family or a source: `llama:/models/mine`, `folder:/a+images:/b`."""
HUB_SOURCES = ("hf", "text")
"""Data sources whose path may be a data set of the hub."""


def redact_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without local paths: files and folders are reduced to their names, `data_dir` to None."""
    redacted = {name: _redact_paths(value) for name, value in recipe.items()}
    for section, field in (("backbone", "weights"), ("dataset", "path")):
        value = (redacted.get(section) or {}).get(field)
        from_hub = section == "backbone" or redacted[section]["name"] in HUB_SOURCES
        # Also if the path is relative; the name of a repository is no path.
        if isinstance(value, str) and ":" not in value and not (from_hub and is_repository_id(value)):
            redacted[section] = {**redacted[section], field: PurePath(value).name}
    name = recipe["backbone"]["name"]
    if get_backbone_folder(name) is not None:  # keep it a folder; a bare name would be looked up on the Hub
        family, _, place = name.partition(":")
        redacted["backbone"] = {**redacted["backbone"], "name": f"{family}:./{_get_last_part(place)}"}
    if isinstance(redacted.get("init_from"), str) and not is_repository_id(redacted["init_from"]):
        redacted["init_from"] = PurePath(redacted["init_from"]).name
    return {**redacted, "data_dir": None}


def redact_config(config: AdapterConfig) -> AdapterConfig:
    """Return the configuration of an adapter without local paths in its recipe and its lineage."""
    lineage = tuple({**step, "from": PurePath(str(step["from"])).name} for step in config.lineage)
    return replace(config, recipe=redact_recipe(config.recipe), lineage=lineage)


def find_base_model(loaded: LoadedModel) -> str | None:
    """Return the hub's id of the model that the backbone of a run is; None if its weights are from elsewhere."""
    named, module = loaded.recipe.backbone, loaded.model.backbone.module
    if named.weights is not None and is_repository_id(named.weights):
        return str(named.weights)
    if named.weights is not None or get_backbone_folder(named.name) is not None:
        return None
    of_timm: Any = getattr(module, "pretrained_cfg", None) or {}
    places = (
        of_timm.get("hf_hub_id"),
        getattr(getattr(module, "config", None), "name_or_path", None),
        named.name.partition(":")[2],
    )
    return next((place for place in places if place and REPOSITORY_ID.fullmatch(place)), None)


def get_backbone_folder(name: str) -> str | None:
    """Return the local folder in a backbone's name, as in `llama:/models/mine`; None if there is none."""
    _, _, place = name.partition(":")
    folder = Path(place).expanduser()
    is_path = _redact_paths(name) != name or (folder / "config.json").is_file()
    return place if place and is_path and folder.is_dir() else None


def _redact_paths(value: Any) -> Any:
    if isinstance(value, str):
        whole = re.fullmatch(r"(?:~[^/]*)?/(?!/).*|[A-Za-z]:\\.*", value, re.DOTALL)
        return (
            _get_last_part(value)
            if whole
            else _PATH_IN_NAME.sub(lambda found: found[1] + _get_last_part(found[2]), value)
        )
    if isinstance(value, Mapping):
        return {_redact_paths(name): _redact_paths(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_paths(each) for each in value]
    return value


def _get_last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
