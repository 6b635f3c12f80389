"""What an export format is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toast_cli.storage.adapter import Loaded


@dataclass(frozen=True)
class Format:
    """A registered export format.

    `parts` are what it can write (`--what`), the first of them by default; `write(loaded, part, dtype, path)` writes
    one file and returns the largest difference between the logits of the run and those of the file read back.
    """

    suffix: str
    parts: tuple[str, ...]
    write: Callable[[Loaded, str, str, Path], float]
