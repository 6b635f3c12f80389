"""Base classes of the settings in a recipe. Torch-free, so that recipes validate fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError, core_schema

AUTO = "auto"
"""Value of a numeric setting that toast chooses when a run starts, by trials or by the machine."""
RECOMMENDED = "recommended"
"""Value of a learning rate that a table decides, by method and size of the model."""


def _parse_switch(value: Any) -> Any:
    return {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value


Switch = Annotated[bool, BeforeValidator(_parse_switch)]
"""A boolean setting that is also accepted as the words on and off."""


LOCAL_PATH: JsonDict = {"format": "path"}
"""`json_schema_extra` of a field that names a file or a folder, so that it is found again from another folder."""

LOCAL_PATH_KEYS: JsonDict = {"propertyNames": {"format": "path"}}
"""`json_schema_extra` of a field whose keys name files or folders; a word and a colon may be before a path."""


class OrAuto:
    """Annotation of a numeric setting that may also be `auto` or another word. Add it after the bounds of the number.

    Type checkers see the number, because a run replaces the word before it reads the setting.
    """

    def __init__(self, *others: str) -> None:
        self.words = (AUTO, *others)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        kind = ", ".join(["a whole number" if source is int else "a number", *self.words[:-1]])

        def validate(value: Any, check_number: core_schema.ValidatorFunctionWrapHandler) -> Any:
            if isinstance(value, str) and value not in self.words:
                raise PydanticCustomError("number_or_auto_type", f"must be {kind} or {self.words[-1]}")
            return value if isinstance(value, str) else check_number(value)

        unchanged = core_schema.plain_serializer_function_ser_schema(lambda value: value)
        return core_schema.no_info_wrap_validator_function(validate, handler(source), serialization=unchanged)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(schema), *({"const": word} for word in self.words)]}


def is_automatic(value: object) -> bool:
    """Return whether a setting is `auto`: toast chooses its number when a run starts."""
    return value == AUTO


def is_recommended(value: object) -> bool:
    """Return whether a setting is `recommended`: a table decides its number once the model is open."""
    return value == RECOMMENDED


class BaseOptions(BaseModel):
    """Immutable settings, validated once. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class NamedOptions(BaseOptions):
    """A section of a recipe. Its `name` selects the plugin that defines the other fields.

    `absent_fields` maps fields that only some plugins define to what to say to users of the others.
    """

    absent_fields: ClassVar[Mapping[str, str]] = {}

    name: str

    @classmethod
    def list_path_key_fields(cls) -> list[str]:
        """Return the names of the fields whose keys name files or folders."""
        return [name for name, field in cls.model_fields.items() if field.json_schema_extra == LOCAL_PATH_KEYS]

    @classmethod
    def list_path_fields(cls) -> list[str]:
        """Return the names of the fields that name a file or a folder."""
        return [name for name, field in cls.model_fields.items() if field.json_schema_extra == LOCAL_PATH]
