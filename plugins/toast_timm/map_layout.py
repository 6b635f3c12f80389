"""Layouts and sizes of maps: channels first or last, cells as tokens, and the fit of one map to another."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def to_channels_last(map: Tensor) -> Tensor:
    """Return a map `[B, C, H, W]` as `[B, H, W, C]`. Nothing is copied if it came so."""
    return map.permute(0, 2, 3, 1).contiguous()


def to_channels_first(map: Tensor) -> Tensor:
    """Return a map `[B, H, W, C]` as `[B, C, H, W]`, without a copy."""
    return map.permute(0, 3, 1, 2)


def flatten_map(map: Tensor) -> Tensor:
    """Return the cells of a map `[B, C, H, W]` as tokens `[B, H W, C]`."""
    return map.flatten(2).transpose(1, 2).contiguous()


def fit_map(map: Tensor, other: Tensor) -> Tensor:
    """Crop a map `[B, C, H, W]` at the bottom and the right, or pad it with zeros, to the size of another map.

    A deconvolution gives a few cells less or more than the input of a level if its stride does not divide that.
    """
    rows, columns = (theirs - ours for ours, theirs in zip(map.shape[-2:], other.shape[-2:], strict=True))
    return F.pad(map, (0, columns, 0, rows)) if rows or columns else map
