"""Backbones whose name meant other weights in an earlier version of toast."""

from __future__ import annotations

from toast_cli import registry
from toast_cli.recipe.parse import replace_recipe_fields
from toast_cli.recipe.schema import Recipe


def resolve_recorded_name(name: str, toast_version: str) -> str:
    """Return the present name of the backbone that a version of toast recorded as `name`."""
    if name not in registry.list_names(registry.BACKBONES):
        return name
    release = _parse_release(toast_version)
    for last, present in registry.load_backbone_card(name).superseded.items():
        if release is not None and release <= (_parse_release(last) or ()):
            return str(present)
    return name


def resolve_recorded_backbone(recipe: Recipe, toast_version: str) -> Recipe:
    """Return the recipe with the backbone that its name meant in the version of toast that recorded it."""
    name = resolve_recorded_name(recipe.backbone.name, toast_version)
    if name == recipe.backbone.name:
        return recipe
    return replace_recipe_fields(recipe, backbone={**recipe.backbone.model_dump(mode="json"), "name": name})


def _parse_release(version: str) -> tuple[int, ...] | None:
    """Return the first two numbers of a version, (0, 1) for 0.1.3; None where it has none."""
    parts = version.split(".")[:2]
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else None
