"""What is built on every backbone: composition, folding, the cache, pre-tuning, heads on several levels, adapters."""

from __future__ import annotations

from copy import copy, deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toast_cli.backbones.base import Backbone
from toast_cli.data.base import CACHED_KEY
from toast_cli.methods.adapted_model import AdaptedModel
from toast_cli.model.model import BackboneSnapshot, Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import PretuningOptions
from toast_cli.steering import steering as steering_module
from toast_cli.steering.folding import FoldedSteering
from toast_cli.steering.steering import Steering, compute_steered_features, run_first_pass, run_one_pass, run_two_passes
from toast_cli.storage.adapter import build_adapter_config, save_adapter_folder
from toast_cli.storage.load_model import load_model
from toast_cli.tasks.classification import ClassificationOptions, build_classification
from toast_cli.tasks.segmentation import SegmentationOptions, build_segmentation
from toast_cli.training.feature_cache import CachedStep, compute_first_pass_outputs
from toast_cli.training.step import PretuningStep, TrainingStep

CLASSES = ("a", "b", "c")


def draw_inputs(backbone: Backbone, batch: int = 2) -> Any:
    torch.manual_seed(1)
    inputs = backbone.example(batch)
    return inputs.to(next(backbone.module.parameters()).dtype) if isinstance(inputs, Tensor) else inputs


def build_steering(backbone: Backbone, levels: range | None = None) -> Steering:
    """Return a steering whose signals are neither zero nor small."""
    torch.manual_seed(0)
    steering = Steering(backbone, levels)
    with torch.no_grad():
        for parameter in steering.feedback.parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        dtype = next(backbone.module.parameters()).dtype
        steering.to(dtype)
        first = run_first_pass(backbone, steering.levels, draw_inputs(backbone))[1]
        z = first.compared.movedim(backbone.channel_dim, -1)
        steering.selection.xi.copy_(nn.functional.normalize(z, dim=-1).flatten(0, -2).mean(0))
    return steering


def build_steered_model(backbone: Backbone, levels: range | None = None) -> Model:
    steering = build_steering(backbone, levels)
    objective = build_classification(ClassificationOptions(), backbone, CLASSES)
    stock = BackboneSnapshot.from_backbone(backbone)
    return Model(AdaptedModel(backbone, steering.parameters(), steering), objective, stock)


def make_batch(backbone: Backbone) -> dict[str, Any]:
    inputs = draw_inputs(backbone)
    batch = dict(inputs) if not isinstance(inputs, Tensor) else {"image": inputs}
    return {**batch, "label": torch.tensor([0, 1])}


def is_close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def skip_texts(backbone: Backbone) -> None:
    if backbone.preprocessing is None:
        pytest.skip("for images")


@pytest.mark.parametrize("feedback", ["full", "early", "late"])
@torch.no_grad()
def test_folded_and_composed_feedback_give_the_same_features(
    backbone: Backbone, feedback: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = deepcopy(backbone)
    backbone.module.double()  # the last blocks of some models have scales of 1e-5
    if hasattr(backbone.module, "set_experts_implementation"):
        backbone.module.set_experts_implementation("eager")  # the fused product of experts takes no float64
    middle, count = len(backbone.levels) // 2, len(backbone.levels)
    levels = {"full": range(count), "early": range(middle), "late": range(middle, count)}[feedback]
    steering, inputs = build_steering(backbone, levels), draw_inputs(backbone)
    expected, plain = (
        run_two_passes(backbone, steering, inputs).last.pooled,
        run_one_pass(backbone, inputs).last.pooled,
    )
    effect = float((expected - plain).abs().max())
    assert effect > 1e-8 * float(plain.abs().max())  # float64 resolves 1e-16

    def is_same(features: Tensor) -> bool:
        return float((features - expected).abs().max()) < 1e-5 * effect

    folded = FoldedSteering(steering, backbone)
    assert is_same(run_two_passes(backbone, folded, inputs).last.pooled)
    assert is_same(compute_steered_features(backbone, folded, inputs))
    linear = all(backbone.levels[index].undo == "linear" for index in levels)  # maps are not composed
    at_values = all(backbone.value_weight(index) is not None for index in levels)
    ways = [(False, False), *([(True, False)] * linear), *([(True, True)] * (linear and at_values))]
    for composed, to_values in ways:
        monkeypatch.setattr(steering_module, "is_composition_cheaper", lambda *_, value=composed: value)
        monkeypatch.setattr(steering_module, "is_value_composition_cheaper", lambda *_, value=to_values: value)
        assert is_same(compute_steered_features(backbone, steering, inputs))


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("feedback", ["full", "late"])
def test_cached_first_passes_give_the_loss_and_the_gradients_of_whole_steps(
    backbone: Backbone, feedback: str, checkpointed: bool
) -> None:
    skip_texts(backbone)
    backbone = copy(backbone)
    backbone.checkpointing = checkpointed
    count = len(backbone.levels)
    model = build_steered_model(backbone, range(count // 2, count) if feedback == "late" else None).train()
    batch, results = make_batch(backbone), []
    kept = compute_first_pass_outputs(model, batch["image"])
    passes: Any = SimpleNamespace(get_batch_outputs=lambda _: kept)
    cached = {CACHED_KEY: torch.ones(2), "label": batch["label"]} if "hidden" in kept else batch
    for step, given in ((TrainingStep(model), batch), (CachedStep(model, passes, None), cached)):
        model.zero_grad()
        loss = step(given).loss
        loss.backward()
        results.append([loss.detach(), *(weight.grad for weight in model.get_trained_parameters().values())])
    for whole, from_cache in zip(*results, strict=True):
        assert is_close(from_cache, whole)
    assert all(weight.grad is not None for weight in model.get_trained_parameters().values())


def test_pretuning_trains_the_feedback_by_reconstruction(backbone: Backbone) -> None:
    skip_texts(backbone)
    model = build_steered_model(backbone).train()
    options = PretuningOptions()
    output = PretuningStep(model, options)(make_batch(backbone))
    names = [f"reconstruction/{index + 1}" for index in range(len(backbone.levels))]
    assert list(output.parts) == names and all(part > 0 for part in output.parts.values())
    output.loss.backward()
    steering = model.adapted.steering
    assert isinstance(steering, Steering)
    for A_l in steering.feedback.A:
        assert all(weight.grad is not None and weight.grad.any() for weight in A_l.parameters())
    assert not any(weight.grad is not None for weight in backbone.module.parameters())


def test_a_head_on_several_levels_labels_pixels(backbone: Backbone) -> None:
    skip_texts(backbone)
    steering = build_steering(backbone)
    objective = build_segmentation(SegmentationOptions(width=4), backbone, CLASSES)
    adapted = AdaptedModel(backbone, steering.parameters(), steering)
    model = Model(adapted, objective, BackboneSnapshot.from_backbone(backbone)).train()
    images = draw_inputs(backbone)
    size = tuple(images.shape[-2:])
    outputs = model(images)
    loss = objective.loss(outputs, {"image": images, "labels": torch.ones(2, *size, dtype=torch.int64)})
    loss.backward()
    assert loss.isfinite() and outputs.shape[1] == 2 * len(CLASSES)
    assert any(weight.grad is not None and weight.grad.any() for weight in steering.feedback.parameters())
    with torch.no_grad():
        assert model.eval()(images).shape[1] == len(CLASSES)


def test_a_saved_adapter_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    dataset = "alpaca:texts.json" if name.startswith("llama:") else "demo"
    raw = {"backbone": {"name": name, "weights": "none"}, "dataset": dataset, "method": "toast"}
    recipe = build_recipe(raw, {}, origin="a test")
    model = build_model(recipe, CLASSES).eval()
    with torch.no_grad():
        for weight in model.get_trained_parameters().values():
            weight.normal_(std=0.1)
    trained = {key: weight.detach() for key, weight in model.get_trained_parameters().items()}
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = build_adapter_config(model, recipe, CLASSES)
    save_adapter_folder(folder, trained, model.get_frozen_additions(), config, "A card.\n")
    loaded = load_model(folder).model
    inputs = draw_inputs(model.backbone)
    with torch.no_grad():
        assert torch.equal(loaded(inputs), model(inputs))
