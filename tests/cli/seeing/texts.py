"""A small model tuned on texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.language import make_model
from toast_cli.model.model import build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.storage.adapter import build_adapter_config, save_adapter_folder


def tuned_on_texts(here: Path, path: str, seed: int = 0, **dataset: Any) -> Path:
    """A run of a tiny language model whose feedback path moves attention, though nothing was learned."""
    folder = here / "llama"
    if not folder.exists():
        make_model(folder)
    data = {"name": "alpaca", "path": "none.json", **dataset}
    raw = {"backbone": f"llama:{folder}", "dataset": data, "device": "cpu"}
    recipe = build_recipe(
        {**raw, "method": {"name": "toast", "start": "random"}, "task": "language"}, {}, origin="a test"
    )
    model = build_model(recipe, ())
    torch.manual_seed(seed)
    for weight in model.adapted.steering.feedback.parameters():  # type: ignore[union-attr]
        torch.nn.init.normal_(weight, std=0.5)
    torch.nn.init.ones_(model.adapted.steering.selection.xi)  # type: ignore[union-attr]
    save_adapter_folder(
        here / path,
        model.get_trained_parameters(),
        model.get_frozen_additions(),
        build_adapter_config(model, recipe, ()),
        "",
    )
    return here / path
