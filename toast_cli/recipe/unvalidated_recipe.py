"""A recipe before validation: plain values, and where each of them was written."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FieldPath = tuple[str | int, ...]
"""The path of a value in a recipe: `("training", "lr")`, `("images", "mean", 1)`."""

SECTIONS = ("backbone", "dataset", "method", "task")
"""The sections whose fields are defined by the plugin that their `name` selects."""


SOURCE_BY_SUFFIX = {".csv": "table", ".tsv": "table", ".parquet": "table", ".zip": "archive", ".tar": "archive"}
"""The source that reads a data set file, by its suffix."""


def suggest_source_prefix(choice: str) -> str:
    """Return a hint that replaces a bare path by `SOURCE:PATH`; empty if there is no such folder or data file."""
    path = Path(choice)
    if path.is_dir():
        return f"For that folder of images, use folder:{choice}."
    kind = SOURCE_BY_SUFFIX.get(path.suffix.lower())
    return f"For that file, use {kind}:{choice}." if kind and path.is_file() else ""


def format_field_path(loc: FieldPath) -> str:
    """Format the path of a value as a user writes it: `images.mean[1]`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


@dataclass
class PartialRecipe:
    """The values of a recipe, where each was written ("cub.yaml:12", "from --method"), and its name and kind.

    Sections given as a bare name are expanded at once, so later code does not handle shorthands. `values` and
    `places` are copied: options and overrides change the draft and not its input.
    """

    values: dict[str, Any]
    places: dict[FieldPath, str] = field(default_factory=dict)
    origin: str = "recipe"
    kind: str = "recipe"

    def __post_init__(self) -> None:
        self.values = deepcopy(self.values)
        self.places = dict(self.places)
        for section in SECTIONS:
            if isinstance(choice := self.values.get(section), str):
                self._expand_shorthand(section, choice, self.locate((section,)))

    def locate(self, loc: FieldPath) -> str:
        """Return where a value was written. If it is missing, return where its nearest parent begins."""
        for end in range(len(loc), 0, -1):
            if loc[:end] in self.places:
                return self.places[loc[:end]]
        return self.origin

    def get_section_name(self, section: str) -> str | None:
        """Return the `name` of a section, or None."""
        content = self.values.get(section)
        name = content.get("name") if isinstance(content, dict) else None
        return name if isinstance(name, str) else None

    def set_section_name(self, section: str, choice: Any, place: str) -> list[str]:
        """Set the name of a section. Return the fields of the former name, which are dropped.

        Fields are dropped even if the new name has fields of the same name: a weights file or a rank chosen for
        one plugin is seldom right for another. If the name does not change, all fields are kept.
        """
        before = self.values.get(section)
        if not isinstance(choice, str):
            self._remove_places((section,))
            self.values[section], self.places[(section,)] = deepcopy(choice), place
            return []
        kept: dict[str, Any] = {}
        dropped: list[str] = []
        if isinstance(before, dict):
            if self.get_section_name(section) == expand_shorthand(section, choice)["name"]:
                kept = before
            else:
                spelled = expand_shorthand(section, choice)
                dropped = [f"{section}.{key}" for key in before if key not in spelled]
                self._remove_places((section,))
        self._expand_shorthand(section, choice, place, kept)
        return dropped

    def set_value(self, loc: tuple[str, ...], value: Any, place: str) -> None:
        """Set a value and create missing mappings on its path.

        Raises:
            TypeError: A plain value is on the path and has no fields. The argument is the path of that value.
        """
        here = self.values
        for depth, part in enumerate(loc[:-1], start=1):
            if here.get(part) is None:
                here[part] = {}
                self.places[loc[:depth]] = place
            here = here[part]
            if not isinstance(here, dict):
                raise TypeError(format_field_path(loc[:depth]))
        self._remove_places(loc)
        here[loc[-1]], self.places[loc] = value, place

    def _expand_shorthand(self, section: str, choice: str, place: str, kept: Mapping[str, Any] | None = None) -> None:
        spelled = expand_shorthand(section, choice)
        self.values[section] = {**(kept or {}), **spelled}
        self.places.setdefault((section,), place)
        self.places.update({(section, key): place for key in spelled})

    def _remove_places(self, loc: FieldPath) -> None:
        self.places = {known: place for known, place in self.places.items() if known[: len(loc)] != loc}


SHORTHAND_ARGUMENTS = {"dataset": "path", "method": "kind"}
"""The field given after the colon of a section's shorthand. In other sections, all of it is the name (`vit:MODEL`)."""


def expand_shorthand(section: str, choice: str) -> dict[str, str]:
    """Expand a section's shorthand: `folder:PATH` is a data set with a path, `peft:dora` a method with a kind."""
    name, colon, argument = choice.partition(":")
    return (
        {"name": name, SHORTHAND_ARGUMENTS[section]: argument}
        if section in SHORTHAND_ARGUMENTS and colon
        else {"name": choice}
    )
