"""The seal on a text of YAML: its first line, a comment, says what all below it came to when it was written.

A text without one was made by hand; with another one than fits, it was changed since, or is damaged.
"""

from __future__ import annotations

import hashlib
import re

SEAL = "sha256"
_LINE = re.compile(rf"# {SEAL} of all below: ([0-9a-f]+)\n")


def sealed_text(text: str) -> str:
    """A text with its seal."""
    return f"# {SEAL} of all below: {hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def seal_holds(text: str) -> bool:
    """Whether a text has a seal that fits it, or none and is not empty."""
    found = _LINE.match(text)
    if found is None:
        return bool(text.strip()) and not text.startswith(f"# {SEAL}")
    return hashlib.sha256(text[found.end() :].encode()).hexdigest() == found[1]
