"""The base of every block of settings a recipe can hold. Torch-free, so that recipes validate fast."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _parse_switch(value: Any) -> Any:
    return {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value


Switch = Annotated[bool, BeforeValidator(_parse_switch)]
"""A part of the method that can be switched off, in those words or as true and false."""


class BaseOptions(BaseModel):
    """Settings that are checked once and then never change; an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class NamedOptions(BaseOptions):
    """A section of a recipe: its `name` decides who brings the other fields."""

    name: str
