"""Base classes of the settings in a recipe. Torch-free, so that recipes validate fast."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.config import JsonDict


def _parse_switch(value: Any) -> Any:
    return {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value


Switch = Annotated[bool, BeforeValidator(_parse_switch)]
"""A boolean setting that is also accepted as the words on and off."""


LOCAL_PATH: JsonDict = {"format": "path"}
"""`json_schema_extra` of a field that names a file or a folder, so that it is found again from another folder."""


class BaseOptions(BaseModel):
    """Immutable settings, validated once. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class NamedOptions(BaseOptions):
    """A section of a recipe. Its `name` selects the plugin that defines the other fields."""

    name: str

    @classmethod
    def list_path_fields(cls) -> list[str]:
        """Return the names of the fields that name a file or a folder."""
        return [name for name, field in cls.model_fields.items() if field.json_schema_extra == LOCAL_PATH]
