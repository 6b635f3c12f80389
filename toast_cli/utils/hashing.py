"""Digests of files, JSON, text and bytes, and the checksum on the first line of a YAML text. Torch-free."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from toast_cli.utils.files import require_regular_file

CHECKSUM_KEY = "sha256"
"""What a checksum is called within the JSON or YAML that it is of."""
_CHECKSUM_LINE = re.compile(rf"# {CHECKSUM_KEY} of all below: ([0-9a-f]+)\n")


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    with require_regular_file(file).open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """Return the SHA-256 of plain values, whatever the order of their names."""
    return hash_text(json.dumps(value, sort_keys=True))


def hash_text(text: str) -> str:
    """Return the SHA-256 of a text; one with a file's name may hold bytes that are no UTF-8."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def hash_bytes(*parts: bytes) -> bytes:
    """Return 16 bytes that differ where any of the parts does: a short digest, not a checksum of files."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def add_checksum_line(text: str) -> str:
    """Return a YAML text below a comment with its checksum."""
    return f"# {CHECKSUM_KEY} of all below: {hash_text(text)}\n{text}"


def is_checksum_valid(text: str) -> bool:
    """Return whether a text has a checksum line that fits, or none (it was made by hand) and is not empty."""
    found = _CHECKSUM_LINE.match(text)
    if found is None:
        return bool(text.strip()) and not text.startswith(f"# {CHECKSUM_KEY}")
    return hash_text(text[found.end() :]) == found[1]
