"""Tiny models of every family, by the names that `--backbone` takes.

A module for each family registers small configurations with timm or another library, and lists them in `MODELS`. A new
family joins the contract suite with a new module.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules


def list_tiny_models() -> dict[str, list[str]]:
    """Return the names of the tiny models by the module that defines them. The first of each is checked most often."""
    modules = sorted(module.name for module in iter_modules(__path__))
    return {name: import_module(f"{__name__}.{name}").MODELS for name in modules}
