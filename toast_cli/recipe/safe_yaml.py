"""The YAML of recipes: plain values with their line numbers, without tags, aliases and code.

Numbers, true/false and null follow YAML 1.2. PyYAML follows YAML 1.1, where `1e-3` is text, `no` is false and
`1:30` is ninety. Values are built from the parser's events and not composed: libyaml's composer recurses in C and
crashes the process on a few thousand open brackets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import yaml

from toast_cli.recipe.unvalidated_recipe import SECTIONS, FieldPath, PartialRecipe, format_field_path
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.recipe.schema import Recipe

MAX_RECIPE_BYTES = 1_000_000
"""Maximum size of a recipe in bytes. Recipes have a few hundred bytes; a larger file is something else."""
MAX_NESTING = 32
"""Maximum depth of nested mappings and lists."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_NUMBER_LENGTH = 100
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
INTEGER_PATTERN = re.compile(r"[-+]?[0-9]+$")
FLOAT_PATTERN = re.compile(
    r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)


SINGLE_MARKS = frozenset("|,;:/+*&%#@!>-?")
"""Values of an override that are text, whatever YAML makes of them."""


def parse_recipe(text: str, origin: str) -> PartialRecipe:
    """Parse the text of a recipe; `origin` is the file name in messages.

    Raises:
        UsageError: The text is not YAML or not a mapping, repeats a key, or uses YAML that recipes do not allow.
    """
    return PartialRecipe(*parse_mapping(text, origin, "recipe"), origin)


def parse_mapping(text: str, origin: str, kind: str) -> tuple[dict[str, Any], dict[FieldPath, str]]:
    """Parse the text of a mapping. Return its values and the place of each; `kind` is its kind in messages.

    Raises:
        UsageError: As in `parse_recipe`.
    """
    if len(text.encode()) > MAX_RECIPE_BYTES:
        raise UsageError(
            f"{origin} is larger than {MAX_RECIPE_BYTES // 1_000_000} MB.",
            f"A {kind} is a short YAML file.",
            code="recipe.oversized-file",
        )
    reader = _YamlReader(text, origin)
    values = reader.read_document()
    if not isinstance(values, dict):
        content = "nothing" if values is None else "a list" if isinstance(values, list) else "a single value"
        raise UsageError(
            f"{origin} is not a {kind}.",
            f"A {kind} holds 'key: value' lines; this file holds {content}.",
            code="recipe.not-a-mapping",
        )
    return values, reader.places


def parse_value(text: str, origin: str) -> Any:
    """Parse one value, as written after a colon in a recipe: `1e-3`, `false`, `[0.5, 0.5, 0.5]`.

    A single punctuation character, such as the separator `|`, is text: YAML has other meanings for most of them.
    """
    if text in SINGLE_MARKS:
        return text
    return _YamlReader(text, origin, numbered=False).read_document()


def to_yaml(recipe: Recipe, leave_out: Any = None) -> str:
    """Return a resolved recipe as text that parses back to an equal recipe.

    The text has every field, defaults included: first the sections, then the rest in the order of the schema. Fields to
    `leave_out` are in the notation of pydantic's `exclude`.
    """
    values = recipe.model_dump(mode="json", exclude=leave_out)
    ordered: dict[str, Any] = {section: _put_name_first(values.pop(section)) for section in SECTIONS}
    return yaml.dump({**ordered, **values}, Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True, width=10_000)


def _put_name_first(section: dict[str, Any]) -> dict[str, Any]:
    return {"name": section["name"], **section}


class _RecipeDumper(yaml.SafeDumper):
    """A dumper that quotes text that YAML 1.1 or YAML 1.2 would read as another type."""


_RecipeDumper.add_implicit_resolver("tag:yaml.org,2002:int", INTEGER_PATTERN, list("-+0123456789"))
_RecipeDumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_PATTERN, list("-+.0123456789"))
_RecipeDumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


class _YamlReader:
    """A reader that builds plain values from the events of one YAML document and records the line of each."""

    def __init__(self, text: str, origin: str, *, numbered: bool = True) -> None:
        self.origin = origin
        self.numbered = numbered
        self.places: dict[FieldPath, str] = {}
        self._events: Iterator[Any] = self._parse_next_event(text)

    def read_document(self) -> Any:
        """Return the value of the document, or None if it holds only comments."""
        event = self._get_next_event(yaml.StreamStartEvent, yaml.DocumentStartEvent)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        value = self._read_value(event, ())
        event = self._get_next_event(yaml.DocumentEndEvent)
        if not isinstance(event, yaml.StreamEndEvent):
            self._make_error(event, "a second document begins here. A recipe is a single document.")
        return value

    def _parse_next_event(self, text: str) -> Iterator[Any]:
        try:
            yield from yaml.parse(text, _LOADER)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            why = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
            place = self._get_position(mark.line) if mark else self.origin
            raise UsageError(f"{place}: this is not valid YAML.", f"{why}.", code="recipe.invalid-yaml") from error

    def _get_next_event(self, *passed: type) -> Any:
        event = next(self._events)
        while isinstance(event, passed):
            event = next(self._events)
        return event

    def _read_value(self, event: Any, loc: FieldPath) -> Any:
        self.places.setdefault(loc, self._get_position(event.start_mark.line))
        if isinstance(event, yaml.AliasEvent):
            self._make_error(event, f"the alias '*{event.anchor}' is not allowed in a recipe. Write the value out.")
        if event.tag is not None and event.tag != "!":
            self._make_error(event, f"the tag '{event.tag}' is not allowed in a recipe.")
        if isinstance(event, yaml.ScalarEvent):
            return _parse_scalar(event.value) if event.implicit[0] else event.value
        if len(loc) >= MAX_NESTING:
            self._make_error(event, f"more than {MAX_NESTING} mappings and lists are nested here.")
        return self._read_list(loc) if isinstance(event, yaml.SequenceStartEvent) else self._read_mapping(loc)

    def _read_list(self, loc: FieldPath) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._read_value(event, (*loc, len(values))))
        return values

    def _read_mapping(self, loc: FieldPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(key := next(self._events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                self._make_error(key, "a key must be a plain word.")
            if not key.value and key.implicit[0]:
                self._make_error(key, "a key is empty.")
            here = (*loc, key.value)
            if key.value in values:
                self._make_error(key, f"'{format_field_path(here)}' is given twice, first at {self.places[here]}.")
            self.places[here] = self._get_position(key.start_mark.line)
            values[key.value] = self._read_value(next(self._events), here)
        return values

    def _get_position(self, line: int) -> str:
        return f"{self.origin}:{line + 1}" if self.numbered else self.origin

    def _make_error(self, event: Any, why: str) -> None:
        raise UsageError(f"{self._get_position(event.start_mark.line)}: {why}", code="recipe.unsupported-yaml")


def _parse_scalar(text: str) -> Any:
    """Return the value of an unquoted word by the rules of YAML 1.2."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if len(text) > _MAX_NUMBER_LENGTH:  # no setting has so many digits, and Python refuses to parse thousands of them
        return text
    if INTEGER_PATTERN.match(text):
        return int(text)
    return float(text.replace(".inf", "inf").replace(".nan", "nan")) if FLOAT_PATTERN.match(text.lower()) else text
