"""Two passes on a CUDA device: half precision, checkpointing, evaluation, and the memory estimate.

`pytest -m gpu` runs them. TOAST_GPU_TESTS_ON=cpu runs them on the CPU, as `benchmarks/gpu.py --dry` does, except for
the memory, which only a CUDA allocator counts.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from toast_cli.model.model import Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import TrainingOptions
from toast_cli.steering.folding import fold_during_evaluation
from toast_cli.training.plan.memory import estimate_memory

DEVICE = os.environ.get("TOAST_GPU_TESTS_ON", "cuda")
METHODS = ("toast", "toast-lite")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def make_model(method: str) -> Model:
    raw: dict[str, Any] = {"backbone": "vit_demo", "dataset": "demo", "method": {"name": method, "start": "random"}}
    model = build_model(build_recipe(raw, {}, origin="a test"), ("a", "b", "c")).to(DEVICE)
    for name, weight in model.get_trained_parameters().items():
        if "lora_" in name or "feedback" in name:
            nn.init.normal_(weight, std=0.05)
    return model.eval()


def compute_gradients(model: Model, images: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(images).square().sum().backward()
    return {name: weight.grad.clone() for name, weight in model.get_trained_parameters().items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "margin"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=["bf16", "fp16"])
def test_half_precision_stays_within_a_margin_of_the_largest_logit(
    method: str, dtype: torch.dtype, margin: float
) -> None:
    model = make_model(method)
    images = model.backbone.example(8).to(DEVICE)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast(DEVICE, dtype):
            half = model(images).float()
    assert 0 < float((half - exact).abs().max()) < margin * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_changes_no_gradient(method: str) -> None:
    model = make_model(method).double()
    images = model.backbone.example(8).to(DEVICE).double()
    plain = compute_gradients(model, images)
    model.backbone.checkpointing = True
    for name, gradient in compute_gradients(model, images).items():
        assert torch.allclose(gradient, plain[name], rtol=1e-8, atol=1e-10 * float(plain[name].abs().max())), name


@pytest.mark.parametrize("method", METHODS)
def test_an_evaluation_composes_under_mixed_precision_in_the_weights_own_type(method: str) -> None:
    model = make_model(method)
    images = model.backbone.example(8).to(DEVICE)
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        apart = model(images).float()
        with fold_during_evaluation(model.adapted.steering, model.backbone, batches=1000):
            together = model(images).float()
    assert float((apart - together).abs().max()) < 0.05 * max(1.0, float(apart.abs().max()))


@pytest.mark.skipif(DEVICE == "cpu", reason="only CUDA's allocator counts its memory")
def test_the_memory_estimate_is_that_of_the_allocator() -> None:
    model = make_model("toast").train()
    images = model.backbone.example(64).to(DEVICE)
    batch = {"image": images, "label": torch.zeros(64, dtype=torch.long, device=DEVICE)}
    told = estimate_memory(model, TrainingOptions(), {name: t.cpu() for name, t in batch.items()}, Accelerator())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model.objective.loss(model(images), batch).backward()
    measured = torch.cuda.max_memory_allocated() - before
    assert 0.6 < (told.activations + told.gradients) / measured < 1.6
