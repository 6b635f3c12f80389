"""A divided model: what each process holds of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.language import make_model

WORK = """
import json, sys
import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from toast_cli.model import build_model
from toast_cli.recipe.loading import build_recipe
from toast_cli.training.memory import estimate
from toast_cli.training.optimization import make_optimizer
from toast_cli.training.sharding import shard

place, method, out = sys.argv[1:]
raw = {"backbone": f"llama:{place}", "dataset": "text:none", "method": method,
       "training": {"optimizer": "adamw", "lr": 0.01, "shard": True}}
recipe = build_recipe(raw, {}, origin="a test")
accelerator = Accelerator(cpu=True)
model = build_model(recipe, ())
whole = [sum(p.nbytes for p in model.parameters()), sum(p.nbytes for p in model.trained().values())]
ids = torch.arange(6, 54).reshape(2, 24)
batch = {"input_ids": ids, "labels": ids}
told = estimate(model, recipe.training, batch, accelerator)
shard(model, accelerator)
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

def here(tensors):
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)

state = [v for entries in optimizer.state.values() for v in entries.values() if isinstance(v, torch.Tensor) and v.dim()]
held = [here(model.parameters()), here(p.grad for p in model.trained().values()), here(state)]
if accelerator.is_main_process:
    found = {"whole": whole, "held": held, "told": [told.weights, told.gradients, told.optimizer], "losses": losses}
    open(out, "w").write(json.dumps(found))
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_each_of_two_processes_holds_half_of_a_model_in_bf16(tmp_path: Path, method: str) -> None:
    place, work, out = make_model(tmp_path / "model"), tmp_path / "work.py", tmp_path / "found.json"
    AutoModelForCausalLM.from_pretrained(place).bfloat16().save_pretrained(place)
    work.write_text(WORK)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(work), str(place), method, str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    weights, trained = found["whole"]
    for name, held in (("held", found["held"]), ("told", found["told"])):
        halves = [weights / 2, trained / 2, trained]  # AdamW keeps two numbers for each weight
        assert held == pytest.approx(halves, rel=0.05), name
    assert found["losses"][-1] < found["losses"][0]
