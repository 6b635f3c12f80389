"""A recipe before it is checked: plain values, and where each of them was written."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FieldPath = tuple[str | int, ...]
"""The way to a value: `("training", "lr")`, `("images", "mean", 1)`."""

SECTIONS = ("backbone", "dataset", "method", "task")
"""The parts of a recipe whose fields belong to whoever registered their `name`."""


SOURCE_BY_SUFFIX = {".csv": "table", ".tsv": "table", ".parquet": "table", ".zip": "archive", ".tar": "archive"}
"""What a file of a data set is read as, by its ending."""


def suggest_source_prefix(choice: str) -> str:
    """What to say in place of a bare path of a data set; empty where there is no such folder or file."""
    path = Path(choice)
    if path.is_dir():
        return f"For that folder of images, say folder:{choice}."
    kind = SOURCE_BY_SUFFIX.get(path.suffix.lower())
    return f"For that file, say {kind}:{choice}." if kind and path.is_file() else ""


def format_field_path(loc: FieldPath) -> str:
    """The way to a value as a user writes it: `images.mean[1]`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


@dataclass
class PartialRecipe:
    """Values, the place each was written at ("cub.yaml:12", "from --method"), what the whole is called and meant as.

    Sections given as a bare name are spelled out at once, so that nothing after this knows about shorthands. The
    values are a copy: a draft changes as options and overrides are put in, what it was made of does not.
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
                self._expand_shorthand(section, choice, self.place((section,)))

    def place(self, loc: FieldPath) -> str:
        """Where a value was written; for one that was left out, where its surroundings begin."""
        for end in range(len(loc), 0, -1):
            if loc[:end] in self.places:
                return self.places[loc[:end]]
        return self.origin

    def name(self, section: str) -> str | None:
        """The name that a section begins with, when it has one."""
        content = self.values.get(section)
        name = content.get("name") if isinstance(content, dict) else None
        return name if isinstance(name, str) else None

    def choose(self, section: str, choice: Any, place: str) -> list[str]:
        """Put another name into a section; returns the fields of the former name, which are dropped.

        Fields are dropped even where the new name happens to know them: a weight file or a rank that was chosen for
        one thing is seldom right for another. Naming what is already there keeps everything.
        """
        before = self.values.get(section)
        if not isinstance(choice, str):
            self._remove_places((section,))
            self.values[section], self.places[(section,)] = deepcopy(choice), place
            return []
        kept: dict[str, Any] = {}
        dropped: list[str] = []
        if isinstance(before, dict):
            if self.name(section) == expand_shorthand(section, choice)["name"]:
                kept = before
            else:
                spelled = expand_shorthand(section, choice)
                dropped = [f"{section}.{key}" for key in before if key not in spelled]
                self._remove_places((section,))
        self._expand_shorthand(section, choice, place, kept)
        return dropped

    def set(self, loc: tuple[str, ...], value: Any, place: str) -> None:
        """Put a value in, making the mappings on the way to it.

        Raises:
            TypeError: something on the way is a plain value, which has no fields; the argument is the way to it.
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
"""What stands after the colon of a section's shorthand; in any other section the whole is the name (`vit:MODEL`)."""


def expand_shorthand(section: str, choice: str) -> dict[str, str]:
    """What a section's shorthand stands for: `folder:PATH` is a data set with a path, `peft:dora` a method's kind."""
    name, colon, argument = choice.partition(":")
    return (
        {"name": name, SHORTHAND_ARGUMENTS[section]: argument}
        if section in SHORTHAND_ARGUMENTS and colon
        else {"name": choice}
    )
