"""Dotted `key=value` overrides: change any field of a recipe from the command line before validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toast_cli.recipe.safe_yaml import parse_value
from toast_cli.recipe.unvalidated_recipe import SECTIONS, PartialRecipe
from toast_cli.utils.errors import UsageError

_HINT = "Write a dotted field: training.lr=0.02."


def apply_overrides(draft: PartialRecipe, overrides: Sequence[str]) -> list[str]:
    """Apply overrides to a draft. Return the fields that are dropped because a section got a new name.

    Names are changed first: `method.rank=8 method.name=toast-lite` means the same in either order. If a field is
    overridden twice, the later override counts. Unknown fields are reported when the draft is validated.

    Raises:
        UsageError: An override is not of the form KEY=VALUE, or addresses a field of a plain value.
    """
    dropped: list[str] = []
    parsed = [(_parse_key(text), text) for text in overrides]
    for key, text in sorted(parsed, key=lambda each: not _is_section_name(each[0])):
        value, place = _parse_override_value(text), f"from {text}"
        if _is_section_name(key):
            dropped += draft.set_section_name(key[0], value, place)
            continue
        try:
            draft.set_value(key, value, place)
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
        raise UsageError(f"'{key}' in '{text}' is not a field.", what_to_do=_HINT, code="recipe.invalid-override")
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
