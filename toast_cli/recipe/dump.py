"""A resolved recipe as YAML text that reads back as the same recipe."""

from __future__ import annotations

from typing import Any

import yaml

from toast_cli.recipe.partial_recipe import SECTIONS
from toast_cli.recipe.safe_yaml import FLOAT_PATTERN, INTEGER_PATTERN
from toast_cli.recipe.schema import Recipe


class _RecipeDumper(yaml.SafeDumper):
    """Quotes whatever text either version of YAML would take for something else."""


_RecipeDumper.add_implicit_resolver("tag:yaml.org,2002:int", INTEGER_PATTERN, list("-+0123456789"))
_RecipeDumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_PATTERN, list("-+.0123456789"))
_RecipeDumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def to_yaml(recipe: Recipe) -> str:
    """Every field with its value, defaults included: first the sections, then the rest in the schema's order."""
    values = recipe.model_dump(mode="json")
    ordered: dict[str, Any] = {section: _put_name_first(values.pop(section)) for section in SECTIONS}
    return yaml.dump({**ordered, **values}, Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True, width=10_000)


def _put_name_first(section: dict[str, Any]) -> dict[str, Any]:
    return {"name": section["name"], **section}
