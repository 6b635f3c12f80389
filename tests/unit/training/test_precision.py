"""Backbones stored in half precision: what is trained on them is float32, learns, and is found again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.language import make_model
from toast_cli.export.base import ExportRequest
from toast_cli.export.export_run import export_model
from toast_cli.export.verification_worker import open_and_run_export
from toast_cli.model.model import Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.adapter import build_adapter_config, save_adapter_folder
from toast_cli.storage.load_model import load_model
from toast_cli.training.optimization import make_optimizer
from toast_cli.utils.tensor_fingerprints import compute_fingerprint

STORED = {"bf16": torch.bfloat16, "fp16": torch.float16}
METHODS = ("full", "lora", "toast", "toast-lite", "peft:dora", "peft:ia3", "peft:ln_tuning")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model stored in every type; the one in fp32 holds the very numbers of the one in bf16."""
    root = tmp_path_factory.mktemp("models")
    places = {"bf16": make_model(root / "bf16")}
    for name in ("fp16", "fp32"):
        places[name] = Path(shutil.copytree(places["bf16"], root / name))
    module = AutoModelForCausalLM.from_pretrained(places["bf16"]).bfloat16()
    for name, place in places.items():
        module.to(STORED.get(name, torch.float32)).save_pretrained(place)
    return places


def recipe_of(place: Path, method: str, lr: float = 2e-5) -> Recipe:
    training = {"optimizer": "adamw", "lr": lr}
    raw = {"backbone": f"llama:{place}", "dataset": "text:none", "method": method, "training": training}
    return build_recipe(raw, {}, origin="a test")


def texts(count: int = 4, length: int = 24) -> dict[str, Tensor]:
    """Rows that take turns between three tokens."""
    torch.manual_seed(0)
    ids = torch.randint(6, 200, (count, 3)).repeat(1, length // 3)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def train(model: Model, recipe: Recipe, steps: int, autocast: torch.dtype | None = None) -> list[float]:
    """The loss before every step and after the last."""
    optimizer, batch, losses = make_optimizer(model, recipe.training), texts(), []
    scaler = torch.amp.GradScaler("cpu", enabled=autocast == torch.float16)
    model.train()
    for _ in range(steps + 1):
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            outputs = model(model.objective.inputs(batch))
            loss = model.objective.loss(outputs, batch) / model.objective.count(batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return losses


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", STORED)
def test_what_is_trained_is_float32_and_the_rest_stays_as_it_is_stored(
    stored: dict[str, Path], kind: str, method: str
) -> None:
    model = build_model(recipe_of(stored[kind], method), ())
    own = AutoModelForCausalLM.from_pretrained(stored[kind], dtype="auto")
    assert model.backbone_fingerprint == compute_fingerprint(own)
    assert {weight.dtype for weight in model.get_trained_parameters().values()} == {torch.float32}
    frozen = {
        tensor.dtype
        for name, tensor in model.get_network_tensors().items()
        if name not in model.get_trained_parameters()
    }
    assert frozen - {torch.float32} == (set() if method == "full" else {STORED[kind]})
    model.eval()(texts())  # without autocast, as on a CPU


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", STORED)
def test_tiny_steps_move_nearly_all_weights_as_they_do_in_float32(
    stored: dict[str, Path], kind: str, method: str
) -> None:
    losses = {}
    for name in (kind, "fp32"):
        recipe = recipe_of(stored[name], method)
        model = build_model(recipe, ())
        before = {key: weight.detach().clone() for key, weight in model.get_trained_parameters().items()}
        losses[name] = train(model, recipe, 4)
        moved = [(model.get_trained_parameters()[key] != weight).flatten() for key, weight in before.items()]
        assert torch.cat(moved).double().mean() > 0.99, name
    # Full tuning computes in float32 altogether; LoRA's frozen layers do in what they are stored in.
    assert losses[kind] == pytest.approx(losses["fp32"], rel=1e-6 if method == "full" else 1e-4)


@pytest.mark.parametrize("method", ["toast", "lora", "full"])
@pytest.mark.parametrize("precision", STORED)
def test_a_language_model_learns_under_autocast(stored: dict[str, Path], precision: str, method: str) -> None:
    fallen = {}
    for kind in (precision, "fp32"):
        recipe = recipe_of(stored[kind], method, lr=0.02)
        losses = train(build_model(recipe, ()), recipe, 20, autocast=STORED.get(kind))
        fallen[kind] = losses[0] - losses[-1]
    assert fallen["fp32"] > 0.02
    assert fallen[precision] == pytest.approx(fallen["fp32"], rel=0.2)


@pytest.mark.parametrize("method", ["full", "lora", "toast-lite", "peft:ln_tuning"])
def test_an_adapter_on_a_model_in_bf16_gives_its_logits_back(
    stored: dict[str, Path], tmp_path: Path, method: str
) -> None:
    recipe, path = recipe_of(stored["bf16"], method, lr=0.01), tmp_path / "adapter"
    model = build_model(recipe, ())
    train(model, recipe, 2)
    save_adapter_folder(
        path, model.get_trained_parameters(), model.get_frozen_additions(), build_adapter_config(model, recipe, ()), ""
    )
    assert torch.equal(load_model(path).model(texts()), model.eval()(texts()))


@pytest.mark.parametrize("part", ["adapter", "full", "backbone"])
def test_an_export_of_a_model_in_bf16_gives_what_the_run_does(
    stored: dict[str, Path], tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What brings its own weights, what the run does in float32."""
    monkeypatch.setattr(
        "toast_cli.export.verification_worker.run_in_new_process", open_and_run_export
    )  # which takes its time
    recipe, path, out = recipe_of(stored["bf16"], "lora", lr=0.01), tmp_path / "adapter", tmp_path / "out.safetensors"
    model = build_model(recipe, ())
    train(model, recipe, 2)
    save_adapter_folder(path, model.get_trained_parameters(), {}, build_adapter_config(model, recipe, ()), "")
    wanted = ExportRequest(part, backbone_options=recipe.backbone.model_dump(mode="json"))
    monkeypatch.chdir(stored["bf16"].parent)  # exports name the folder of a language model by its last part
    proof, _ = export_model(load_model(path), "safetensors", wanted, out)
    assert proof.largest < 1e-5
