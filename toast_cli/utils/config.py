"""The base of every block of settings a recipe can hold. Torch-free, so that recipes validate fast."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator


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


class PixelOptions(Named):
    """Settings that every task with a label for every pixel has: how images are shown to the backbone."""

    scale: tuple[float, float] | None = Field(
        None, description="images.augment=crop-flip: images are first scaled by a random factor in this range"
    )
    evaluation: Literal["slide", "whole"] = Field(
        "whole",
        description="slide: a window of the backbone's input size slides over the image; "
        "whole: every image is resized to that size",
    )

    @field_validator("scale")
    @classmethod
    def _smaller_first(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and not 0 < scale[0] <= scale[1]:
            raise ValueError("the smaller first, and both above 0")
        return scale
