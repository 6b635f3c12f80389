"""Memory that a GPU fetches from while it computes: asked for where one is used, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.layouts import folder, shards
from tests.scenes import recipe_of
from toast_cli import registry
from toast_cli.backbones.base import Preprocessing
from toast_cli.data.base import BatchOptions
from toast_cli.model.recipe_data import build_batches
from toast_cli.recipe.parse import build_dataset_options

SEEN: Any = SimpleNamespace(require_preprocessing=lambda: Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3))


def pins(kind: str, where: Path, device: str) -> bool:
    """Whether the loader of such a source pins, in a run on that device."""
    more: dict[str, Any] = {}
    if kind == "pixels":
        shorthand, more = "demo-segmentation", {"task": "segmentation", "dataset": "demo-segmentation"}
    else:
        shorthand = folder(where) if kind == "files" else shards(where)
    options = build_dataset_options(shorthand, {"classes": 3} if kind == "stream" else {})
    data = registry.load_entry(registry.SOURCES, options.name).open(options, where)
    loader: Any = build_batches(data.splits["train"], recipe_of(device=device, **more), SEEN, BatchOptions(2))
    return bool(getattr(loader, "_loader", loader).pin_memory)


@pytest.mark.parametrize("kind", ["files", "pixels", "stream"])
@pytest.mark.parametrize(("there", "device", "pinned"), [
    (True, "auto", True), (True, "cuda:1", True), (True, "cpu", False), (True, "mps", False),
    (False, "auto", False), (False, "cpu", False),
])  # fmt: skip
def test_batches_are_pinned_exactly_where_a_gpu_takes_them(
    kind: str, there: bool, device: str, pinned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert pins(kind, tmp_path, device) is pinned
