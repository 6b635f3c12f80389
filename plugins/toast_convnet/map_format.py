"""How a network keeps the map between two stages: the conversion to `[B, C, H, W]` and back, without rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAP_DIMS, TOKEN_DIMS = 4, 3


@dataclass(frozen=True)
class MapFormat:
    """The format of a map between two stages. The default is `[B, C, H, W]` as it is.

    `channels_last` is `[B, H, W, C]`. `widths` are the channels of several maps of one size, which are concatenated;
    the network keeps them as a list or, unless `is_list`, as a tuple.
    `grid` is the size of a map of tokens `[B, H W, C]`, in rows, for images of one size only.
    """

    channels_last: bool = False
    widths: tuple[int, ...] = ()
    grid: tuple[int, int] | None = None
    is_list: bool = False

    def to_map(self, value: Any) -> Tensor:
        """Return the network's value as a map `[B, C, H, W]`."""
        if self.widths:
            return torch.cat(value, dim=1)
        if self.grid:
            return value.transpose(1, 2).unflatten(2, self.grid)
        return value.permute(0, 3, 1, 2) if self.channels_last else value

    def from_map(self, map: Tensor) -> Any:
        """Return a map `[B, C, H, W]` in the format of the network."""
        if self.widths:
            maps = map.split(self.widths, dim=1)
            return list(maps) if self.is_list else maps
        if self.grid:
            return map.flatten(2).transpose(1, 2)
        return map.permute(0, 2, 3, 1) if self.channels_last else map


def find_map_format(value: Any, size: tuple[int, int], width: int | None) -> MapFormat | None:
    """Return the format of a value that is a map of about `size` (rows, columns), None if it is none.

    `width` is the declared number of channels, None if it is not known.
    """
    if isinstance(value, (tuple, list)):
        if not value or not all(_is_map(each) and each.shape[2:] == value[0].shape[2:] for each in value):
            return None
        widths = tuple(each.shape[1] for each in value)
        if not _fits(value[0].shape[2:], size) or width not in (None, sum(widths)):
            return None
        return MapFormat(widths=widths, is_list=isinstance(value, list))
    if not isinstance(value, Tensor):
        return None
    if value.ndim == TOKEN_DIMS and size[0] * size[1] == value.shape[1] and width == value.shape[2]:
        return MapFormat(grid=size)
    if not _is_map(value):
        return None
    if _fits(value.shape[2:], size) and width in (None, value.shape[1]):
        return MapFormat()
    if _fits(value.shape[1:3], size) and width in (None, value.shape[3]):
        return MapFormat(channels_last=True)
    return None


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == MAP_DIMS


def _fits(found: Any, size: tuple[int, int]) -> bool:
    """Return whether a map has this size, except for what convolutions without padding leave out of it."""
    return all(abs(a - b) <= max(1, b // 4) for a, b in zip(found, size, strict=True))
