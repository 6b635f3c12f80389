"""A run's model, loaded by a new process, gives the very logits of the process that trained it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.forks import fork
from toast_cli.model.model import Model
from toast_cli.recipe.parse import build_recipe
from toast_cli.storage.load_model import load_model
from toast_cli.training import session
from toast_cli.training import tune as tuning
from toast_cli.training.reporter import Reporter

METHODS: dict[str, Any] = {
    "toast": "toast",
    "toast-late": {"name": "toast", "feedback": "late"},
    "toast-early": {"name": "toast", "feedback": "early"},
    "toast-lite": "toast-lite",
    "linear": "linear",
    "full": "full",
    "lora": "lora",
    "ia3": {"name": "peft", "kind": "ia3"},
    "vpt": "vpt",
}


def tuned(method: Any, run: Path) -> Tensor:
    """The logits of a model that was just tuned, as this process has it."""
    dataset = {"name": "demo", "train_images": 20, "val_images": 5, "test_images": 5}
    training = {"epochs": 1, "batch_size": 10, "optimizer": "adamw", "lr": 0.01}
    raw = {"backbone": "vit_demo", "dataset": dataset, "method": method, "training": training, "device": "cpu"}
    kept: list[Model] = []
    build = session.build_model
    with pytest.MonkeyPatch.context() as watched:
        watched.setattr(session, "build_model", lambda *given: kept.append(build(*given)) or kept[0])
        tuning.tune_model(build_recipe(raw, {}, origin="a test"), run, Reporter())
    torch.manual_seed(5)
    with torch.no_grad():
        return kept[0].eval()(kept[0].backbone.example(4))


def loaded(out: Path, runs: list[Path]) -> None:
    """Keep the logits of models that are loaded from their runs."""
    logits = {}
    for run in runs:
        model = load_model(run).model
        torch.manual_seed(5)
        with torch.no_grad():
            logits[run.name] = model(model.backbone.example(4))
    save_file(logits, out)


def test_logits_are_the_same_in_a_new_process(tmp_path: Path) -> None:
    here = {name: tuned(method, tmp_path / name) for name, method in METHODS.items()}
    out = tmp_path / "logits.safetensors"
    process = fork(loaded, out, [tmp_path / name for name in METHODS])
    process.join(240)
    assert process.exitcode == 0
    there = load_file(out)
    for name, logits in here.items():
        assert torch.equal(there[name], logits), name
