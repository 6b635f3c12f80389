"""What is told of a step's memory against what is alive in one that is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.language import make_model
from toast_cli.model.model import Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.training.plan.memory import estimate_memory


class Alive(TorchDispatchMode):
    """Follows every tensor that is made: the most bytes that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._made = 0, {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {
            tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)
        }
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in known:
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._made = {key: (ref, size) for key, (ref, size) in self._made.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self._made.values()))
        return out


def peak_of(model: Model, batch: Mapping[str, Tensor]) -> int:
    """Of one forward and backward pass, the gradients included."""
    with Alive() as alive:
        outputs = model.train()(model.objective.inputs(batch))
        model.objective.loss(outputs, batch).backward()
    return alive.peak


def images(side: int) -> dict[str, Tensor]:
    return {"image": torch.zeros(6, 3, side, side), "label": torch.zeros(6, dtype=torch.int64)}


def texts() -> dict[str, Tensor]:
    ids = torch.randint(6, 200, (6, 60))
    mask = torch.ones_like(ids)
    mask[0, 50:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("method", ["toast", "full", "lora"])
@pytest.mark.parametrize("kind", ["vit", "convnext", "llama"])
def test_the_estimate_is_near_what_a_step_holds(kind: str, method: str, checkpointed: bool, tmp_path: Path) -> None:
    backbone: dict[str, Any] = {"name": "vit_demo_3"}
    batch, dataset = images(64), "demo"
    if kind == "convnext":
        backbone, batch = {"name": "convnext:test_convnext", "weights": "none"}, images(160)
    if kind == "llama":
        backbone, batch, dataset = {"name": f"llama:{make_model(tmp_path / 'm')}"}, texts(), "text:none"
    training = {"checkpoint_gradients": checkpointed}
    raw = {"backbone": backbone, "dataset": dataset, "method": method, "training": training}
    recipe = build_recipe(raw, {}, origin="a test")
    model = build_model(recipe, ("a", "b") if dataset == "demo" else ())
    told = estimate_memory(model, recipe.training, batch, Accelerator(cpu=True))
    # What is there for a moment is not told; the gradients come while activations go.
    assert 0.7 < peak_of(model, batch) / (told.activations + told.gradients) < 1.6
