"""Metrics of how well a map matches an object: one number per image, for batches of maps and masks.

A map that is zero everywhere cannot be measured; its metrics are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def compute_mask_coverage(mask: Tensor, shape: torch.Size) -> Tensor:
    """Return the share of each cell that is on the object, 0 to 1: masks `[B, H, W]` to `[B, rows, columns]`."""
    return F.interpolate(mask[:, None].float(), size=shape[-2:], mode="area")[:, 0]


def normalize_maps(map: Tensor) -> Tensor:
    """Divide each map `[B, rows, columns]` by its sum; NaN if the sum is zero."""
    total = map.sum(dim=(1, 2), keepdim=True)
    return map / total.where(total > 0, torch.nan)


def is_zero_map(map: Tensor) -> Tensor:
    """Return whether each map is zero everywhere, `[B]`."""
    return ~map.flatten(1).any(1)


def share_inside(map: Tensor, mask: Tensor) -> Tensor:
    """Return the share of each map `[B, rows, columns]` that lies inside its object's mask `[B, H, W]`: `[B]`, 0 to 1.

    The mask is averaged over each cell, so a cell that is half on the object counts half.
    """
    return (normalize_maps(map) * compute_mask_coverage(mask, map.shape)).sum(dim=(1, 2))


def compute_object_shares(maps: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Return the share of each map on the object, `[B]` by name; NaN if the crop lost the object."""
    visible = mask.flatten(1).any(1)
    return {name: share_inside(map, mask).where(visible, torch.nan) for name, map in maps.items()}


def pointing_game_hits(map: Tensor, mask: Tensor) -> Tensor:
    """Return whether the centre of each map's highest cell is on the object, `[B]`: the pointing game.

    Zhang et al. (ECCV 2016) also accept points within 15 pixels of the object.
    """
    rows, columns = map.shape[1:]
    highest = map.flatten(1).argmax(1)
    y = ((highest // columns + 0.5) * mask.shape[1] / rows).long()
    x = ((highest % columns + 0.5) * mask.shape[2] / columns).long()
    return mask[torch.arange(len(mask), device=mask.device), y, x].float().masked_fill(is_zero_map(map), torch.nan)


def pointing_game_chance(mask: Tensor, rows: int, columns: int) -> Tensor:
    """Return the chance that a random cell of `rows` by `columns` hits the object in the pointing game, `[B]`."""
    y = ((torch.arange(rows, device=mask.device) + 0.5) * mask.shape[1] / rows).long()
    x = ((torch.arange(columns, device=mask.device) + 0.5) * mask.shape[2] / columns).long()
    return mask[:, y][:, :, x].float().mean(dim=(1, 2))


def entropy(map: Tensor) -> Tensor:
    """Return the normalized entropy of each map, `[B]`: 0 (one cell) to 1 (uniform)."""
    p = normalize_maps(map.float()).flatten(1)
    return torch.special.entr(p).sum(1) / math.log(p.shape[1])


def total_variation_distance(first: Tensor, last: Tensor) -> Tensor:
    """Return the total variation distance of two maps, `[B]`: 0 (equal) to 1 (disjoint)."""
    return (first - last).abs().sum(dim=(1, 2)) / 2


def compute_cell_shares(map: Tensor, cells: int) -> Tensor:
    """Return the share of each map in every cell of a grid of `cells` by `cells`, `[B, cells²]`, in row order."""
    rows, columns = map.shape[1:]
    # On a common refinement of both grids, each pixel belongs to one patch and one cell.
    fine = normalize_maps(map).repeat_interleave(cells, 1).repeat_interleave(cells, 2) / cells**2
    return fine.unflatten(2, (cells, columns)).unflatten(1, (cells, rows)).sum(dim=(2, 4)).flatten(1)
