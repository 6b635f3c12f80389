"""Runs to export, and exports that are checked at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toast_cli.storage.load_model import load_model


@pytest.fixture
def run(toast_run: Path) -> Path:
    """A finished run of TOAST on the demo, to be read."""
    return toast_run


def logits(run: Path, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load_model(run).model(image)


def top_down_parts() -> dict[str, torch.Tensor]:
    """Those of the demo's ViT, in the layout of the authors' code."""
    d = 128
    parts = {"prompt": torch.randn(d), "top_down_transform": torch.eye(d)}
    for level in range(3):
        parts |= {
            f"decoders.{level}.linear.weight": torch.randn(d, d),
            f"decoders.{level}.linear2.weight": torch.eye(d),
        }
    return parts
