"""What the parity tests share: golden files, and when two tensors agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def read(file: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every number of a golden file, and its model's configuration."""
    with safe_open(GOLDEN / file, framework="pt") as opened:
        numbers = {name: opened.get_tensor(name) for name in list(opened.keys())}
        return numbers, json.loads((opened.metadata() or {}).get("config", "null"))


def under(numbers: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The numbers whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in numbers.items() if name.startswith(prefix)}


def linear(weights: dict[str, Tensor], name: str) -> nn.Linear:
    """A linear layer with golden weights, in their precision."""
    out, into = weights[f"{name}.weight"].shape
    layer = nn.Linear(into, out).to(weights[f"{name}.weight"].dtype)
    layer.load_state_dict(under(weights, f"{name}."))
    return layer


def assert_agrees(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    difference = (ours.double().reshape(theirs.shape) - theirs.double()).abs().max().item()
    assert difference <= tolerance, f"{name} differs by {difference:.2e}"
