"""A fingerprint of a network's weights, so that an adapter is never put on a backbone it was not trained on.

And a short digest of anything else that must be known again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


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


def hash_bytes(*parts: bytes) -> bytes:
    """16 bytes that differ where any of the parts does."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
