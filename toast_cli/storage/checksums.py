"""Seals: what is read back says of itself what was written, so that a damaged number is never taken for a right one.

A file without a seal (of an older toast, or made by hand) is taken as it is; one whose seal is broken never.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toast_cli.recipe.checksum import CHECKSUM_KEY
from toast_cli.utils.errors import ToastError
from toast_cli.utils.regular_file import require_regular_file

FILE_CHECKSUMS_KEY = "sha256_of_files"
RUN_REPAIR_HINT = (
    "Its checkpoints, if they are still there, bring it back: remove the run's adapter and results.json, then "
    "'toast tune --resume RUN'. Else make the run again."
)
"""What is to be done about what a run puts down at its end."""
_SHA256_PATTERN = re.compile("[0-9a-f]{64}")


def hash_file(file: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    with require_regular_file(file).open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of plain values, whatever the order of their names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def add_checksum(value: Mapping[str, Any], files: Iterable[Path] = ()) -> dict[str, Any]:
    """Plain values with a seal on them and, if named, on files that belong to them."""
    assert CHECKSUM_KEY not in value, "the seal's own name"
    whole = json.loads(
        json.dumps({**value, **({FILE_CHECKSUMS_KEY: {f.name: hash_file(f) for f in files}} if files else {})})
    )
    return {**whole, CHECKSUM_KEY: hash_json(whole)}


def parse_checksummed_json(text: str | bytes, folder: Path | None = None) -> Any:
    """The plain values of a JSON text, without their seal.

    Raises:
        ValueError: it is no JSON, it names something twice, or it or a file of `folder` is not what was sealed.
        OSError: a file cannot be read.
        RecursionError: it is nested too deeply.
    """
    value = json.loads(text, object_pairs_hook=_reject_duplicate_keys)
    if not isinstance(value, dict):
        return value
    seal = value.pop(CHECKSUM_KEY, None)
    if _has_renamed_checksum(value) if seal is None else seal != hash_json(value):
        raise ValueError("what it says is not what was written, by its sha256")
    files = value.pop(FILE_CHECKSUMS_KEY, {})
    if not isinstance(files, dict):
        raise ValueError(f"{FILE_CHECKSUMS_KEY} is no object")
    for name, digest in files.items():
        if folder is not None and hash_file(folder / Path(name).name) != digest:
            raise ValueError(f"{name} is not what was written, by its sha256")
    return value


def _has_renamed_checksum(value: Mapping[str, Any]) -> bool:
    """Whether there is a seal under another name: the damage is in its name."""
    likely = [name for name, text in value.items() if isinstance(text, str) and _SHA256_PATTERN.fullmatch(text)]
    return any(hash_json({key: value[key] for key in value if key != name}) == value[name] for name in likely)


def read_checksummed_json(path: Path, what_to_do: str = RUN_REPAIR_HINT) -> dict[str, Any]:
    """The plain values of a file with a JSON object.

    Raises:
        ToastError: it cannot be read, is none, or its seal is broken.
    """
    try:
        value = parse_checksummed_json(require_regular_file(path).read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it holds no JSON object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise ToastError(f"{path} is damaged.", str(error), what_to_do) from error


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a name is given twice")
    return value
