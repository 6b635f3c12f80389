"""The seal on a text of YAML: its first line, a comment, says what all below it came to when it was written.

A text without one was made by hand; with another one than fits, it was changed since, or is damaged.
"""

from __future__ import annotations

import hashlib
import re

CHECKSUM_KEY = "sha256"
_CHECKSUM_LINE = re.compile(rf"# {CHECKSUM_KEY} of all below: ([0-9a-f]+)\n")


def add_checksum_line(text: str) -> str:
    """A text with its seal."""
    return f"# {CHECKSUM_KEY} of all below: {hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def is_checksum_valid(text: str) -> bool:
    """Whether a text has a seal that fits it, or none and is not empty."""
    found = _CHECKSUM_LINE.match(text)
    if found is None:
        return bool(text.strip()) and not text.startswith(f"# {CHECKSUM_KEY}")
    return hashlib.sha256(text[found.end() :].encode()).hexdigest() == found[1]
