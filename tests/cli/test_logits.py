"""A run's model, loaded by a new process, gives the very logits of the process that trained it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from toast_cli.model import Model
from toast_cli.recipe.loading import build_recipe
from toast_cli.training import session
from toast_cli.training.reporter import Reporter

LOAD = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from toast_cli.storage.adapter import load
model = load(Path(sys.argv[1])).model
torch.manual_seed(5)
with torch.no_grad():
    save_file({"logits": model(model.backbone.example(4))}, sys.argv[2])
"""

METHODS = ["toast", "toast-lite", "linear", "full", "lora", "vpt", {"name": "toast", "feedback": "late"}]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_logits_are_the_same_in_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any) -> None:
    dataset = {"name": "demo", "train_images": 20, "val_images": 5, "test_images": 5}
    training = {"epochs": 1, "batch_size": 10, "optimizer": "adamw", "lr": 0.01}
    raw = {"backbone": "vit_demo", "dataset": dataset, "method": method, "training": training, "device": "cpu"}
    kept: list[Model] = []
    build = session.build_model
    monkeypatch.setattr(session, "build_model", lambda *given: kept.append(build(*given)) or kept[0])
    folder, _ = session.tune(build_recipe(raw, {}, origin="a test"), tmp_path / "run", Reporter())
    torch.manual_seed(5)
    with torch.no_grad():
        here = kept[0].eval()(kept[0].backbone.example(4))
    out = tmp_path / "logits.safetensors"
    subprocess.run([sys.executable, "-c", LOAD, str(folder.path), str(out)], check=True, timeout=120)
    assert torch.equal(load_file(out)["logits"], here)
