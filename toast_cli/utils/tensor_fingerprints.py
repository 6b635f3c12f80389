"""Gathering, copying and fingerprinting of named tensors.

Tensors shared by processes are `DTensor`s: all processes must gather or copy them together. Other tensors are used
as they are. A fingerprint prevents using an adapter with a backbone that it was not trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from toast_cli.utils.hashing import hash_bytes


def gather_full_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each tensor in full. Sharded tensors are moved to the CPU."""
    return {
        name: tensor.full_tensor().detach().cpu() if isinstance(tensor, DTensor) else tensor
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def copy_tensor(place: Tensor, tensor: Tensor) -> None:
    """Copy a full tensor to `place`. If `place` is sharded, each process copies its shard."""
    if isinstance(place, DTensor):
        tensor = distribute_tensor(tensor.to(place.device), place.device_mesh, place.placements)
    place.copy_(tensor)


def copy_tensors(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    """Copy tensors to the places of the same names."""
    for name, tensor in tensors.items():
        copy_tensor(places[name], tensor)


def compute_fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of all parameters and buffers, sorted by name."""
    return hash_tensors(module.state_dict())


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of the tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_module_settings(module: nn.Module) -> str:
    """Return a digest of a network's settings: the types of its modules and every plain value that they hold.

    Examples are the number of attention heads, an epsilon or an activation, which the weights do not determine.
    """

    def plain(value: object) -> bool:
        return all(map(plain, value)) if isinstance(value, tuple) else isinstance(value, bool | int | float | str)

    settings = [
        (name, type(part).__qualname__, sorted((k, v) for k, v in vars(part).items() if plain(v) and k != "training"))
        for name, part in module.named_modules()
    ]
    return hash_bytes(repr(settings).encode()).hex()
