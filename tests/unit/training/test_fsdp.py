"""A divided model: what each process holds of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from tests.forks import fork, two_of_a_group
from tests.language import make_model
from toast_cli.model.model import build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.training.distributed.fsdp import shard_model
from toast_cli.training.optimization import make_optimizer
from toast_cli.training.plan.memory import estimate_memory


def trained(place: Path, method: str, out: Path, shared: dict[str, str]) -> None:
    """One of the processes: divide a model, train it a little, and the first writes down what it holds."""
    os.environ.update(shared)
    raw = {
        "backbone": f"llama:{place}",
        "dataset": "text:none",
        "method": method,
        "training": {"optimizer": "adamw", "lr": 0.01, "shard": True},
    }
    recipe = build_recipe(raw, {}, origin="a test")
    accelerator = Accelerator(cpu=True)
    model = build_model(recipe, ())
    whole = [sum(p.nbytes for p in model.parameters()), sum(p.nbytes for p in model.get_trained_parameters().values())]
    ids = torch.arange(6, 54).reshape(2, 24)
    batch = {"input_ids": ids, "labels": ids}
    told = estimate_memory(model, recipe.training, batch, accelerator)
    shard_model(model, accelerator)
    optimizer = make_optimizer(model.train(), recipe.training)
    losses = []
    for _ in range(3):
        loss = model.objective.loss(model({"input_ids": ids}), batch) / model.objective.count(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        model({"input_ids": ids})

    def here(tensors: Iterable[torch.Tensor]) -> int:
        return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)

    numbers = [v for entries in optimizer.state.values() for v in entries.values() if isinstance(v, torch.Tensor)]
    gradients = [p.grad for p in model.get_trained_parameters().values() if p.grad is not None]
    held = [here(model.parameters()), here(gradients), here(v for v in numbers if v.dim())]
    if accelerator.is_main_process:
        found = {"whole": whole, "held": held, "told": [told.weights, told.gradients, told.optimizer], "losses": losses}
        out.write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_each_of_two_processes_holds_half_of_a_model_in_bf16(tmp_path: Path, method: str) -> None:
    place, out = make_model(tmp_path / "model"), tmp_path / "found.json"
    AutoModelForCausalLM.from_pretrained(place).bfloat16().save_pretrained(place)
    both = [fork(trained, place, method, out, shared) for shared in two_of_a_group()]
    for process in both:
        process.join(150)
        assert process.exitcode == 0
    found = json.loads(out.read_text())
    weights, learned = found["whole"]
    for name, held in (("held", found["held"]), ("told", found["told"])):
        halves = [weights / 2, learned / 2, learned]  # AdamW keeps two numbers for each weight
        assert held == pytest.approx(halves, rel=0.05), name
    assert found["losses"][-1] < found["losses"][0]
