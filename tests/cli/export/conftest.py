"""Runs to export, and exports that are checked at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cli.conftest import TINY_DEMO, toast
from tests.language import instructions, make_model, write_json
from toast_cli.storage.load_model import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of TOAST on the demo."""
    run = tmp_path_factory.mktemp("finished") / "run"
    said = toast("tune", *TINY_DEMO, "--output-dir", run)
    assert said.code == 0, said.err
    return run


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of TOAST-Lite on a tiny LLaMA."""
    here = tmp_path_factory.mktemp("text")
    data = write_json(here / "data.json", instructions(20))
    chosen = ["--backbone", f"llama:{make_model(here / 'model')}", "--dataset", f"alpaca:{data}"]
    said = toast("tune", *chosen, "--method", "toast-lite", "--output-dir", here / "run", "training.epochs=1")
    assert said.code == 0, said.err
    return here / "run"


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
