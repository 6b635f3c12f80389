"""Imports: attributes that are imported on first use, and fewer passes of the garbage collector meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def make_lazy_getattr(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` (PEP 562) that imports each name from its home on first access.

    Args:
        module: Name of the module that gets the `__getattr__`.
        homes: Module that defines each name.
    """

    def get_attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return get_attribute


def collect_garbage_less_often() -> None:
    """Let the garbage collector of this process start after 10,000 new objects instead of 700.

    For commands that end soon: imports and models make millions of objects that stay, and the collector would pass over
    them about a thousand times. That is a fifth of the time that `import timm` takes. Training keeps the usual number,
    as tensors in reference cycles would stay in memory longer.
    """
    gc.set_threshold(10_000)
