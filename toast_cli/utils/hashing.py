"""Digests of files, JSON, text and bytes, and the checksum on the first line of a YAML file. Torch-free."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from toast_cli.utils.files import require_regular_file

CHECKSUM_KEY = "sha256"
"""Key under which JSON and YAML files store their own checksum."""
_CHECKSUM_LINE = re.compile(rf"# {CHECKSUM_KEY} of all below: ([0-9a-f]+)\n")


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        OSError: The file cannot be read or is not a regular file.
    """
    digest = hashlib.sha256()
    with require_regular_file(file).open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """Return the SHA-256 of plain values, independent of the order of keys."""
    return hash_text(json.dumps(value, sort_keys=True))


def hash_text(text: str) -> str:
    """Return the SHA-256 of a text. Bytes of file names that are not UTF-8 are kept as surrogate escapes."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def hash_bytes(*parts: bytes) -> bytes:
    """Return a 16-byte digest of the parts. It is shorter than the SHA-256 used for the checksums of files."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def add_checksum_line(text: str) -> str:
    """Return a YAML text with a first line that holds its checksum."""
    return f"# {CHECKSUM_KEY} of all below: {hash_text(text)}\n{text}"


def has_checksum_line(text: str) -> bool:
    """Return whether a text begins with a line that holds its checksum, and so was written by toast."""
    return _CHECKSUM_LINE.match(text) is not None


def is_checksum_valid(text: str) -> bool:
    """Return whether a text has a matching checksum line, or has none (written by hand) and is not empty."""
    line = _CHECKSUM_LINE.match(text)
    if line is None:
        return bool(text.strip()) and not text.startswith(f"# {CHECKSUM_KEY}")
    return hash_text(text[line.end() :]) == line[1]
