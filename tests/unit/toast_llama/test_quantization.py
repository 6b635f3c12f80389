"""Language models in 8 and 4 bits: loading, gradients, two steps of every method, plans, and what is refused."""

from __future__ import annotations

import gc
import json
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import toast_cli
from tests.language import instructions, make_model, make_tokenizer, write_json
from toast_cli import registry
from toast_cli.backbones.quantized_linear import (
    QuantizedLinear,
    count_parameters,
    dequantize_layers,
    get_quantization,
)
from toast_cli.model.model import Model, build_model, fold_model, get_merged_state_dict
from toast_cli.recipe.parse import build_recipe, load_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.training.continuation.start import initialize_model
from toast_cli.training.distributed.fsdp import check_shardable
from toast_cli.training.plan.outline import build_outline, outline_model
from toast_cli.training.reporter import Reporter
from toast_cli.training.tune import tune_model
from toast_cli.utils.errors import ToastError, UsageError

KINDS = ["int8", "int4", "nf4"]
LARGEST_CHANGE = {"int8": 0.01, "int4": 0.1, "nf4": 0.1}
"""Of the loss of the models below, as a share of it."""
SIZES = {
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LINEAR_LAYERS = {"llama": 14, "qwen3": 14, "phi3": 8}


def make_folder(folder: Path, model: nn.Module) -> Path:
    """A model with weights large enough that every layer matters, and a tokenizer of bytes."""
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {
        "llama": make_folder(base / "llama", LlamaForCausalLM(LlamaConfig(**SIZES))),
        "qwen3": make_folder(base / "qwen3", Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8))),
        "phi3": make_folder(base / "phi3", Phi3ForCausalLM(Phi3Config(**SIZES, pad_token_id=0))),
    }


def recipe_of(folder: Path, kind: str | None, method: Any = "toast", **fields: Any) -> Recipe:
    raw = {
        "backbone": {"name": f"llama:{folder}", "quantize": kind},
        "dataset": "text:none",
        "method": {"name": method, "start": "random"} if method in ("toast", "toast-lite") else method,
        "training": {"optimizer": "adamw", "lr": 0.01},
        **fields,
    }
    return build_recipe(raw, {}, origin="a test")


def make_batch(length: int = 20) -> dict[str, Tensor]:
    ids = torch.randint(6, 262, (2, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def compute_loss(model: Model) -> Tensor:
    batch = make_batch()
    loss: Tensor = model.objective.loss(model(model.objective.inputs(batch)), batch)
    return loss


def fill(model: Model) -> Model:
    """Give what is trained weights that matter, in float64."""
    torch.manual_seed(2)
    for weight in model.get_trained_parameters().values():
        nn.init.normal_(weight, std=0.2)
    return model.double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_layers_are_quantized_as_they_are_read(folders: dict[str, Path], family: str, kind: str) -> None:
    model = build_model(recipe_of(folders[family], kind), ())
    stock = AutoModelForCausalLM.from_pretrained(folders[family])
    parts = model.backbone.module.named_modules()
    quantized = {name: part for name, part in parts if isinstance(part, QuantizedLinear)}
    assert len(quantized) == LINEAR_LAYERS[family] and all(".layers." in name for name in quantized)
    for name, layer in quantized.items():
        expected = QuantizedLinear.from_linear(stock.get_submodule(name), layer.kind)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(layer.buffers(), expected.buffers(), strict=True))
    rest = dict(stock.named_parameters())
    assert all(torch.equal(weight, rest[name]) for name, weight in model.backbone.module.named_parameters())
    assert count_parameters(model.backbone.module) == stock.num_parameters()
    config = json.loads(model.backbone.files()["config.json"])
    assert not [name for name in config if "quant" in name], "an export would describe other weights"
    (note,) = [note for note in model.backbone.notes if kind in note]
    assert f"{LINEAR_LAYERS[family]} linear layers" in note


def test_full_weights_are_freed_while_others_are_read(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, alive = {(64, 32), (32, 64), (32, 32), (16, 32)}, list[int]()
    quantize = QuantizedLinear.from_weight

    def count_weights(*arguments: Any) -> QuantizedLinear:
        tensors = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]
        alive.append(sum(not each.is_meta and each.is_floating_point() and each.shape in shapes for each in tensors))
        return quantize(*arguments)

    monkeypatch.setattr(QuantizedLinear, "from_weight", count_weights)
    build_model(recipe_of(folders["llama"], "nf4", "lora"), ())
    assert len(alive) == LINEAR_LAYERS["llama"] and max(alive) - alive[0] <= 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])  # the values of Phi-3 are rows of a fused layer
@pytest.mark.parametrize("method", ["toast", "toast-lite", "lora"])
def test_every_method_trains_two_steps_with_the_gradients_of_the_dequantized_weights(
    folders: dict[str, Path], family: str, kind: str, method: str
) -> None:
    model = fill(build_model(recipe_of(folders[family], kind, method), ()))
    plain = deepcopy(model)
    dequantize_layers(plain.backbone.module)
    plain.double()
    pairs = list(zip(model.get_trained_parameters().items(), plain.get_trained_parameters().values(), strict=True))
    optimizers = [torch.optim.SGD([*each.get_trained_parameters().values()], lr=0.01) for each in (model, plain)]
    losses = []
    for _ in range(2):
        loss, expected = compute_loss(model), compute_loss(plain)
        losses.append(loss.item())
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        loss.backward()
        expected.backward()
        for (name, ours), theirs in pairs:
            assert ours.grad is not None and theirs.grad is not None
            scale = theirs.grad.abs().max().clamp_min(1e-3)
            assert (ours.grad - theirs.grad).abs().max() < 1e-9 * scale, name
        for optimizer in optimizers:
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert losses[1] < losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_changes_by_less_than_the_stated_margin(folders: dict[str, Path], kind: str) -> None:
    with torch.no_grad():
        plain, quantized = (compute_loss(build_model(recipe_of(folders["llama"], each), ())) for each in (None, kind))
    assert 0 < abs(quantized - plain) < LARGEST_CHANGE[kind] * plain


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_folding_and_composing_use_the_dequantized_values(
    folders: dict[str, Path], family: str, checkpointed: bool
) -> None:
    training = {"optimizer": "adamw", "lr": 0.01, "checkpoint_gradients": checkpointed}
    model = fill(build_model(recipe_of(folders[family], "nf4", training=training), ()))
    inputs = model.objective.inputs(make_batch(60))  # enough tokens for composing to be cheaper
    with torch.no_grad():
        passes = model.forward_passes(inputs)[0]
        assert (model(inputs) - passes).abs().max() < 1e-9
        assert (fold_model(model)(inputs) - passes).abs().max() < 1e-9


def test_what_cannot_be_quantized_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        build_model(recipe_of(folders["llama"], "nf4", "full"), ())
    assert refused.value.code == "method.quantized-backbone"
    with pytest.raises(UsageError) as refused:
        build_recipe(
            {"backbone": {"name": "vit_demo", "quantize": "nf4"}, "dataset": "demo", "method": "toast"},
            {},
            origin="a test",
        )
    assert "Only language models can be quantized" in refused.value.why
    stored = shutil.copytree(folders["llama"], tmp_path / "stored")
    config = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UsageError) as refused:
        build_model(recipe_of(stored, "int8"), ())
    assert refused.value.code == "backbone.cannot-quantize" and "gptq" in refused.value.what
    with pytest.raises(UsageError) as refused:
        check_shardable(build_model(recipe_of(folders["llama"], "int8"), ()))
    assert refused.value.code == "training.conflicting-options"
    options = {"init_lora_weights": "pissa"}
    method = {"name": "peft", "kind": "lora", "options": options}
    with pytest.raises(UsageError) as refused:
        build_model(recipe_of(folders["llama"], "int8", method=method), ())
    assert refused.value.code == "method.quantized-backbone"


def test_a_missing_library_is_named_before_weights_are_read(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(UsageError) as refused:
        build_model(recipe_of(folders["llama"], "nf4"), ())
    assert refused.value.code == "cli.missing-package"


def test_merged_weights_are_those_of_the_adapted_model(folders: dict[str, Path]) -> None:
    method = {"name": "peft", "kind": "dora", "options": {"r": 2, "target_modules": ["q_proj", "down_proj"]}}
    model = fill(build_model(recipe_of(folders["llama"], "nf4", method), ()))
    merged = build_model(recipe_of(folders["llama"], None), ()).backbone.module.double()
    merged.load_state_dict(get_merged_state_dict(model), strict=False)
    inputs = model.objective.inputs(make_batch())
    with torch.no_grad():
        assert (merged(**inputs, use_cache=False).logits - model(inputs)).abs().max() < 1e-9
    assert get_quantization(model.backbone.module) == "nf4"


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_knows_the_bytes_without_weights(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folders["llama"] / "config.json").read_text())
    recipe = recipe_of(tmp_path, kind)
    whole = outline_model(recipe, build_outline(recipe)).whole
    built = build_model(recipe_of(folders["llama"], kind), ())
    tensors = [{id(t): t.nbytes for t in (*each.parameters(), *each.buffers())} for each in (whole, built)]
    assert sum(tensors[0].values()) == sum(tensors[1].values())
    assert get_quantization(whole.backbone.module) == kind
    assert all(tensor.is_meta for tensor in whole.backbone.module.state_dict().values())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs in nf4."""
    return tune(tmp_path_factory.mktemp("tuned"), 2)


def tune(folder: Path, epochs: int, kind: str = "nf4") -> Path:
    model, data = folder / "model", folder / "data.json"
    if not model.exists():
        make_model(model)
        write_json(data, instructions(24))
    training = {"epochs": epochs, "batch_size": 4, "schedule": "constant", "optimizer": "adamw", "lr": 0.01}
    dataset = {"name": "alpaca", "path": str(data)}
    tune_model(
        recipe_of(model, kind, dataset=dataset, training=training, device="cpu"), folder / f"run{epochs}", Reporter()
    )
    return folder / f"run{epochs}"


def test_a_run_is_extended_bit_for_bit_and_records_its_quantization(run: Path, tmp_path: Path) -> None:
    short = shutil.copytree(run, tmp_path / "run")
    whole = tune(run.parent, 3)
    tune_model(load_recipe(short / "recipe.yaml"), short, Reporter(), resume=True, overrides=["training.epochs=3"])
    ours, theirs = (load_file(path / "checkpoints" / "last" / "model.safetensors") for path in (short, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any("packed" in name for name in ours)
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["recipe"]["backbone"]["quantize"] == "nf4"
    assert "Backbone quantization: nf4" in (run / "adapter" / "README.md").read_text()
    opened = toast_cli.load(run)
    assert get_quantization(opened.model.backbone.module) == "nf4"


@pytest.mark.parametrize("kind", ["int8", None])
def test_another_quantization_is_named(run: Path, kind: str | None) -> None:
    module = registry.load_backbone_card(f"llama:{run.parent / 'model'}")
    other = module.build(module.options(name=module.name, quantize=kind)).module
    with pytest.raises(ToastError) as refused:
        toast_cli.load(run, backbone=other)
    assert refused.value.code == "adapter.other-quantization"
    assert "nf4" in refused.value.what and (kind or "without quantization") in refused.value.what
    recipe = recipe_of(run.parent / "model", kind, init_from=str(run))
    with pytest.raises(ToastError) as refused:
        initialize_model(build_model(recipe, ()), recipe, ())
    assert refused.value.code == "adapter.other-quantization"
