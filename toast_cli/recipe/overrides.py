"""Dotted `key=value` overrides: any field of a recipe, changed from the command line before the recipe is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toast_cli.recipe.partial_recipe import SECTIONS, PartialRecipe
from toast_cli.recipe.safe_yaml import parse_value
from toast_cli.utils.errors import UsageError

_HINT = "Write a dotted field: training.lr=0.02."


def apply_overrides(draft: PartialRecipe, overrides: Sequence[str]) -> list[str]:
    """Put overrides into a draft; returns the fields that a new name made meaningless, which are dropped.

    Names are changed first, so that `method.rank=8 method.name=toast-lite` means the same in either order. Of two
    overrides of one field the later counts. Whether a field exists is found out when the draft is checked.

    Raises:
        UsageError: one is not of the form KEY=VALUE, or reaches into a plain value.
    """
    dropped: list[str] = []
    parsed = [(_parse_key(text), text) for text in overrides]
    for key, text in sorted(parsed, key=lambda each: not _is_section_name(each[0])):
        value, place = _parse_override_value(text), f"from {text}"
        if _is_section_name(key):
            dropped += draft.choose(key[0], value, place)
            continue
        try:
            draft.set(key, value, place)
        except TypeError as error:
            raise UsageError(
                f"{text}: {error} is a plain value and has no fields.", code="recipe.not-a-section"
            ) from error
    return dropped


def _is_section_name(key: tuple[str, ...]) -> bool:
    return key[0] in SECTIONS and key[1:] in ((), ("name",))


def _parse_key(text: str) -> tuple[str, ...]:
    key, equals, _ = text.partition("=")
    parts = tuple(key.split("."))
    if not equals:
        raise UsageError(f"'{text}' is not of the form KEY=VALUE.", what_to_do=_HINT, code="recipe.invalid-override")
    if not all(parts) or any(part != part.strip() for part in parts):
        raise UsageError(f"'{key}' in '{text}' is no field.", what_to_do=_HINT, code="recipe.invalid-override")
    return parts


def _parse_override_value(text: str) -> Any:
    key, _, value = text.partition("=")
    if not value.strip():
        raise UsageError(
            f"'{text}' has no value.",
            what_to_do=f"Write {key}=null to set it to nothing.",
            code="recipe.invalid-override",
        )
    return parse_value(value, origin=text)
