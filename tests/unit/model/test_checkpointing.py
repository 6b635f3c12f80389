"""Gradient checkpointing and accumulation change what is kept in memory, never what is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.language import make_model
from toast_cli import registry
from toast_cli.model.model import build_model, count_flops
from toast_cli.recipe.parse import build_recipe
from toast_cli.steering.steering import Steering, run_two_passes
from toast_cli.tasks.classification import Classification, ClassificationOptions
from toast_cli.tasks.language import LanguageModeling
from toast_cli.utils.constants import IGNORE_INDEX


def gradients(name: str, checkpointing: bool) -> list[Tensor]:
    torch.manual_seed(0)
    card = registry.load_backbone_card(name)
    backbone = card.build(card.options(name=name, weights="none" if name.startswith("convnext") else None))
    backbone.module.eval().requires_grad_(False)
    backbone.checkpointing = checkpointing
    steering = Steering(backbone)
    for parameter in steering.parameters():
        nn.init.normal_(parameter, std=0.2)
    torch.manual_seed(1)
    run_two_passes(backbone, steering, backbone.example(3)).last.pooled.square().sum().backward()
    return [parameter.grad for parameter in steering.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("kind", ["vit_demo_3", "convnext:test_convnext", "llama"])
def test_checkpointed_gradients_are_the_unchecked_ones(kind: str, tmp_path: Path) -> None:
    name = f"llama:{make_model(tmp_path / 'model')}" if kind == "llama" else kind
    plain, checked = gradients(name, False), gradients(name, True)
    assert len(plain) == len(checked) > 0 and all(gradient.any() for gradient in plain)
    for first, second in zip(plain, checked, strict=True):
        assert torch.allclose(first, second, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["toast", "full"])
@pytest.mark.parametrize("kind", ["vit_demo_3", "convnext:test_convnext", "llama"])
def test_a_whole_model_under_autocast_has_the_unchecked_gradients(kind: str, method: str, tmp_path: Path) -> None:
    name = f"llama:{make_model(tmp_path / 'model')}" if kind == "llama" else kind
    backbone = {"name": name, "weights": "none" if kind.startswith("convnext") else None}
    raw = {"backbone": backbone, "dataset": "text:none" if kind == "llama" else "demo", "method": method}
    found = []
    for checkpointing in (False, True):
        recipe = build_recipe({**raw, "training": {"checkpoint_gradients": checkpointing}}, {}, origin="a test")
        model = build_model(recipe, () if kind == "llama" else ("a", "b")).train()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            model(model.backbone.example(3)).float().square().mean().backward()
        found.append({name: weight.grad for name, weight in model.get_trained_parameters().items()})
    plain, checked = found
    assert plain.keys() == checked.keys()
    assert sum(gradient is not None and bool(gradient.any()) for gradient in plain.values()) > 0.7 * len(plain)
    for name, gradient in plain.items():
        if gradient is not None:  # in bf16, which rounds elsewhere where tokens are weighed elsewhere: each is 1% off
            assert (checked[name] - gradient).norm() <= 0.02 * gradient.norm(), name


def test_a_model_costs_what_it_costs_however_it_was_trained() -> None:
    counted = []
    for checkpointing in (False, True):
        model = build_model(
            build_recipe({"backbone": "vit_demo_3", "dataset": "demo", "method": "toast"}, {}, origin="a test"),
            ("a", "b"),
        )
        model.backbone.checkpointing = checkpointing
        counted.append(count_flops(model))
        assert model.backbone.checkpointing is checkpointing
    assert counted[0] == counted[1]


def test_texts_of_unequal_length_weigh_by_their_tokens_however_they_are_batched() -> None:
    torch.manual_seed(0)
    objective = LanguageModeling(nn.Identity())
    logits, labels = torch.randn(4, 9, 7), torch.randint(7, (4, 9))
    for row, length in enumerate((9, 2, 5, 3)):
        labels[row, length:] = IGNORE_INDEX
    whole: dict[str, Any] = {"labels": labels}
    parts = [slice(0, 1), slice(1, 4)]
    at_once = objective.loss(logits, whole) / objective.count(whole)
    total = sum(objective.count({"labels": labels[part]}) for part in parts)
    in_parts = sum(objective.loss(logits[part], {"labels": labels[part]}) / total for part in parts)
    by_hand = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.isclose(torch.as_tensor(in_parts), at_once) and torch.isclose(at_once, by_hand)


def test_the_meter_of_a_split_is_that_of_all_its_batches_at_once() -> None:
    torch.manual_seed(0)
    objective = Classification(nn.Identity(), classes=4, options=ClassificationOptions())
    logits, labels = torch.randn(10, 4), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 2])
    meter = objective.meter()
    for part in (slice(0, 3), slice(3, 10)):
        meter.add(logits[part], {"label": labels[part]})
    result, right = meter.result(), (logits.argmax(-1) == labels).double()
    assert result["images"] == 10
    assert result["accuracy"] == pytest.approx(float(right.mean()))
    assert result["class_accuracy"] == pytest.approx(float(sum(right[labels == c].mean() for c in (0, 1, 2)) / 3))
    assert result["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)))
