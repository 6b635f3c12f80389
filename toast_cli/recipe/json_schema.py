"""The JSON schema of recipes, for editors. Each section offers the names that are registered on this machine."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from toast_cli import registry
from toast_cli.recipe.schema import Recipe
from toast_cli.utils.errors import ToastError

_GROUPS = {
    "backbone": registry.BACKBONES,
    "dataset": registry.SOURCES,
    "method": registry.METHODS,
    "task": registry.TASKS,
}


def build_recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file. Names whose plugin fails to load are left out."""
    options = {section: _group_names_by_options(group) for section, group in _GROUPS.items()}
    models: list[type[BaseModel]] = [Recipe, *(model for classes in options.values() for model in classes)]
    references, shared = models_json_schema([(model, "validation") for model in models])
    top = shared["$defs"].pop(references[Recipe, "validation"]["$ref"].rpartition("/")[2])
    for section, classes in options.items():
        forms: list[dict[str, Any]] = [
            _build_shorthand_schema(section, [name for each in classes.values() for name in each])
        ]
        for model, names in classes.items():
            reference = references[model, "validation"]
            forms.append(
                {"allOf": [reference], "properties": {"name": _build_name_schema(section, names)}, "required": ["name"]}
            )
        description = top["properties"][section].get("description", "")
        top["properties"][section] = {"description": description, "oneOf": forms}
    top["required"] = [name for name in top["required"] if name != "task"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, **shared}


def _group_names_by_options(group: str) -> dict[type[BaseModel], list[str]]:
    """Return the registered names that load, grouped by their options class. Several ViTs share one class."""
    found: dict[type[BaseModel], list[str]] = {}
    for name in registry.list_names(group):
        try:
            found.setdefault(registry.load_entry(group, name).options, []).append(name)
        except ToastError:
            continue
    return found


def _build_shorthand_schema(section: str, names: list[str]) -> dict[str, Any]:
    """Return the schema of a section given as a bare name. A data set may include a path: `folder:PATH`."""
    if section == "dataset":
        return {"type": "string", "pattern": f"^({'|'.join(names)})(:.+)?$"}
    return _build_name_schema(section, names)


def _build_name_schema(section: str, names: list[str]) -> dict[str, Any]:
    if section != "backbone":
        return {"enum": names}
    families = "|".join(registry.list_prefixes())
    return {"anyOf": [{"enum": names}, {"type": "string", "pattern": f"^({families}):.+$"}]}
