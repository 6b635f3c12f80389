"""The base of every block of settings a recipe can hold. Torch-free, so that recipes validate fast."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _on_or_off(value: Any) -> Any:
    return {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value


Switch = Annotated[bool, BeforeValidator(_on_or_off)]
"""A part of the method that can be switched off, in those words or as true and false."""


class Options(BaseModel):
    """Settings that are checked once and then never change; an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Named(Options):
    """A section of a recipe: its `name` decides who brings the other fields."""

    name: str
