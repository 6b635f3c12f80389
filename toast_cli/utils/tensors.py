"""Tensors by name: gathered and copied where processes share them, and fingerprinted.

Processes share a tensor as PyTorch's `DTensor`: all of them must gather or copy it together. Any other tensor is taken
as it is. A fingerprint keeps an adapter from a backbone that it was not trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from toast_cli.utils.hashing import hash_bytes


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


def compute_fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of every parameter and buffer, in the order of their names."""
    return hash_tensors(module.state_dict())


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_module_settings(module: nn.Module) -> str:
    """What a network computes beside its weights: its modules by kind, and every plain value that one of them holds.

    Heads of attention, an epsilon, a kind of activation: none of them can be told from tensors.
    """

    def plain(value: object) -> bool:
        return all(map(plain, value)) if isinstance(value, tuple) else isinstance(value, bool | int | float | str)

    settings = [
        (name, type(part).__qualname__, sorted((k, v) for k, v in vars(part).items() if plain(v) and k != "training"))
        for name, part in module.named_modules()
    ]
    return hash_bytes(repr(settings).encode()).hex()
