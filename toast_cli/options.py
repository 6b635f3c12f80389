"""The base of every block of settings a recipe can hold. Torch-free, so that recipes validate fast."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Settings that are checked once and then never change; an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Named(Options):
    """A section of a recipe: its `name` decides who brings the other fields."""

    name: str
