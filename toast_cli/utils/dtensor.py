"""Tensors that are divided among processes (PyTorch's `DTensor`): put together, and written to.

All processes must ask for it. A tensor that is not divided is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def gather_full_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in one piece, on the CPU where it was divided."""
    return {
        name: tensor.full_tensor().detach().cpu() if isinstance(tensor, DTensor) else tensor
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def copy_tensor(place: Tensor, tensor: Tensor) -> None:
    """Copy a whole tensor to its place; where that is divided, each process takes its part."""
    if isinstance(place, DTensor):
        tensor = distribute_tensor(tensor.to(place.device), place.device_mesh, place.placements)
    place.copy_(tensor)


def copy_tensors(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    """Copy tensors to the places of their names."""
    for name, tensor in tensors.items():
        copy_tensor(places[name], tensor)
