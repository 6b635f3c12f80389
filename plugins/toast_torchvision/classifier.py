"""The classifier of a torchvision model, which features do not pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def leave_out(module: nn.Module, path: str) -> Iterator[None]:
    """Replace a part of a model by the identity inside the block."""
    holder, _, name = path.rpartition(".")
    parent = module.get_submodule(holder)
    part = parent._modules[name]
    parent._modules[name] = nn.Identity()
    try:
        yield
    finally:
        parent._modules[name] = part
