"""Imports: attributes that are imported on first use, and imports without passes of the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Collect no garbage within the block, which imports libraries or builds a model.

    Both make millions of objects that stay. The collector would pass over them again and again and free next to
    nothing, which is a fifth of the time that `import timm` takes. Unreachable objects are freed after the block.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
