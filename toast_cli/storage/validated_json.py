"""Records that come back from files: every value of the kind that was written, or they are damaged."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from toast_cli.utils.errors import ToastError

T = TypeVar("T")


def validate_dataclass(kind: type[T], raw: Any) -> T:
    """A dataclass from plain values, each of which must be what its field says.

    Raises:
        ValueError: one is not, is missing, or is none of the fields.
    """
    if isinstance(raw, dict) and (unknown := raw.keys() - {field.name for field in fields(cast(Any, kind))}):
        raise ValueError(f"it has {min(unknown)}, which means nothing")
    adapter: TypeAdapter[T] = TypeAdapter(kind)
    try:
        return adapter.validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def check_format_version(raw: Any, newest: int, path: Path) -> None:
    """Say of a record of a later format that it is, before its fields are looked at.

    Raises:
        ToastError: so it is.
    """
    if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > newest:
        whose = f"a newer toast ({raw.get('toast_version')})"
        raise ToastError(f"{path} was written by {whose}.", what_to_do="Update toast.")
