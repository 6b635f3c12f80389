"""Messages about invalid recipes: field, value, place, expectation and nearest name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from toast_cli.recipe.unvalidated_recipe import FieldPath, PartialRecipe, format_field_path
from toast_cli.utils.errors import UsageError, did_you_mean

_MISSING = object()

_ERROR_MESSAGES = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must hold 'key: value' lines",
    "model_type": "must hold 'key: value' lines",
    "model_attributes_type": "must hold 'key: value' lines",
    "none_required": "must be null",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "value_error": "{error}",
    "assertion_error": "{error}",
}
"""Messages for pydantic's error types. Other types keep pydantic's message without its preamble."""

_ERROR_CODES = {
    "missing": "recipe.missing",
    "extra_forbidden": "recipe.unknown-field",
    "literal_error": "recipe.unknown-choice",
    "enum": "recipe.unknown-choice",
    "int_from_float": "recipe.wrong-type",
    "none_required": "recipe.wrong-type",
}
_RANGE_ERRORS = ("finite_number", "greater_than", "less_than", "multiple_of", "too_", "string_too_")


@dataclass(frozen=True)
class RecipeProblem:
    """One problem in a recipe: its field, what is expected, the value, and the error code."""

    loc: FieldPath
    text: str
    value: Any = _MISSING
    code: str = field(kw_only=True)

    def format_line(self, draft: PartialRecipe) -> str:
        """Format the problem as one line of a message."""
        value = "" if self.value is _MISSING else f" = {_format_value(self.value)}"
        return f"{format_field_path(self.loc)}{value} ({draft.locate(self.loc)}): {self.text}"


def make_recipe_error(problems: Iterable[RecipeProblem], draft: PartialRecipe) -> UsageError:
    """Return one error that reports every problem of a recipe."""
    found = list(problems)
    lines = [f"  {problem.format_line(draft)}" for problem in found]
    in_file = any(draft.locate(problem.loc).startswith(draft.origin) for problem in found)
    return UsageError(
        f"{draft.origin} cannot be used as a {draft.kind}." if in_file else "These settings cannot be used.",
        lines,
        code=found[0].code if len({problem.code for problem in found}) == 1 else "recipe.invalid",
    )


def convert_validation_error(
    error: ValidationError, start: FieldPath, draft: PartialRecipe, models: dict[str, type[BaseModel]]
) -> list[RecipeProblem]:
    """Return the problems of one validated part of a recipe.

    Args:
        error: The error that pydantic raised.
        start: The path of the validated part.
        draft: The recipe.
        models: The options classes by section.
    """
    found = [_locate_error(detail, start, draft) for detail in error.errors(include_url=False)]
    # A value of a union type fails once for each member. Keep only the errors of the member that was matched deepest.
    inner = {loc for loc, _, of_union in found if of_union}
    problems: dict[FieldPath, dict[str, str]] = {}
    for loc, detail, of_union in found:
        if of_union and any(len(other) > len(loc) and other[: len(loc)] == loc for other in inner):
            continue
        if detail["type"] == "missing" and isinstance(loc[-1], int):
            loc, text, code = loc[:-1], f"must have at least {int(loc[-1]) + 1} entries.", "recipe.out-of-range"
        else:
            text, code = _format_error(detail, loc, draft, models), _get_error_code(detail["type"])
        problems.setdefault(loc, {}).setdefault(text, code)
    return [
        RecipeProblem(
            loc,
            _join_texts(list(codes)),
            _get_value(draft, loc),
            code=next(iter(codes.values())) if len(set(codes.values())) == 1 else "recipe.wrong-type",
        )
        for loc, codes in problems.items()
    ]


def _locate_error(detail: Any, start: FieldPath, draft: PartialRecipe) -> tuple[FieldPath, Any, bool]:
    """Return the path of an error in the recipe, the error, and whether a union member was removed from the path.

    pydantic's own path also holds the union members that it tried.
    """
    here = _get_value(draft, start)
    loc, of_union = start, False
    for position, part in enumerate(detail["loc"], start=1):
        inside = part in here if isinstance(here, dict) else isinstance(here, list) and isinstance(part, int)
        left_out = detail["type"] == "missing" and position == len(detail["loc"])
        if inside or left_out:
            loc = (*loc, part)
            here = _get_value(draft, loc)
        else:
            of_union = True
    return loc, detail, of_union


def _format_error(detail: Any, loc: FieldPath, draft: PartialRecipe, models: dict[str, type[BaseModel]]) -> str:
    kind = detail["type"]
    if kind == "missing":
        return "is missing."
    if kind == "extra_forbidden":
        return f"there is no such field. {_suggest_field(loc, models)}"
    context = detail.get("ctx", {})
    if kind in ("literal_error", "enum"):
        allowed = re.findall(r"'([^']*)'", context["expected"])
        value = _get_value(draft, loc)
        hint = did_you_mean(value, allowed) if isinstance(value, str) and allowed else ""
        return f"must be one of {context['expected'].replace(' or ', ', ')}. {hint.partition('Known:')[0]}".strip()
    if kind in _ERROR_MESSAGES:
        return _ERROR_MESSAGES[kind].format(**context).rstrip(".") + "."
    return str(detail["msg"]).replace("Input should", "must").rstrip(".") + "."


def _get_error_code(kind: str) -> str:
    """Return the error code of one of pydantic's error types."""
    if kind in _ERROR_CODES:
        return _ERROR_CODES[kind]
    if kind.endswith(("_type", "_parsing")):
        return "recipe.wrong-type"
    return "recipe.out-of-range" if kind.startswith(_RANGE_ERRORS) else "recipe.invalid-value"


def _join_texts(texts: list[str]) -> str:
    return ", or ".join(text.rstrip(".") for text in texts) + "." if len(texts) > 1 else texts[0]


def _suggest_field(loc: FieldPath, models: dict[str, type[BaseModel]]) -> str:
    """Return a hint for an unknown key: the same key in another section, else the nearest key in its own."""
    key = str(loc[-1])
    siblings = _get_known_fields(loc[:-1], models)
    if absent := getattr(models.get(str(loc[0])), "absent_fields", {}).get(key):
        return str(absent)
    if key not in siblings:
        for section, model in models.items():
            if section and key in model.model_fields:
                return f"Did you mean '{section}.{key}'?"
    return did_you_mean(key, siblings, {name: field.description or "" for name, field in siblings.items()})


def _get_known_fields(loc: FieldPath, models: dict[str, type[BaseModel]]) -> Mapping[str, FieldInfo]:
    """Return the known fields of a mapping in the recipe, found through the annotations of the options classes."""
    if not loc:
        return models[""].model_fields
    model: Any = models.get(str(loc[0]))
    for part in loc[1:]:
        known = model.model_fields.get(part) if model is not None else None
        inner = [known.annotation, *getattr(known.annotation, "__args__", ())] if known is not None else []
        model = next((each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)), None)
    return model.model_fields if model is not None else {}


def _get_value(draft: PartialRecipe, loc: FieldPath) -> Any:
    here: Any = draft.values
    for part in loc:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            return _MISSING
    return here


def _format_value(value: Any, longest: int = 60) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= longest else text[: longest - 1] + "…"
