"""The classifier that a backbone came with, for data of classes that it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from toast_cli.model.model import Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.utils.errors import UsageError

IMAGENET = tuple(f"class {number}" for number in range(1000))
MODELS = {"vit": "test_vit", "convnext": "test_convnext"}


@pytest.fixture(params=MODELS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stock(family: str) -> Any:
    torch.manual_seed(1)
    return timm.create_model(MODELS[family]).eval()


@pytest.fixture
def weights(stock: Any, tmp_path: Path) -> Path:
    save_file(stock.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def model_of(family: str, weights: Path, classes: tuple[str, ...], method: str = "toast") -> Model:
    raw = {
        "backbone": {"name": f"{family}:{MODELS[family]}", "weights": str(weights)},
        "dataset": "demo",
        "method": method,
        "task": {"name": "classification", "head": "own"},
    }
    return build_model(build_recipe(raw, {}, origin="a test"), classes).eval()


@torch.no_grad()
def test_the_first_pass_and_the_own_classifier_are_the_model_as_it_came(family: str, stock: Any, weights: Path) -> None:
    model = model_of(family, weights, IMAGENET)
    images = torch.randn(2, 3, *model.backbone.require_preprocessing().image_size)
    _, passes = model.forward_passes(images)
    torch.testing.assert_close(model.head(passes.first.pooled), stock(images))


@torch.no_grad()
def test_fewer_classes_are_found_by_their_imagenet_names(family: str, stock: Any, weights: Path) -> None:
    model = model_of(family, weights, ("n01484850", "n01440764"))
    images = torch.randn(2, 3, *model.backbone.require_preprocessing().image_size)
    _, passes = model.forward_passes(images)
    torch.testing.assert_close(model.head(passes.first.pooled), stock(images)[:, [2, 0]])


def test_the_own_classifier_is_not_trained(family: str, weights: Path) -> None:
    assert not any(name.startswith("head") for name in model_of(family, weights, IMAGENET).get_trained_parameters())
    with pytest.raises(UsageError, match="trains nothing"):
        model_of(family, weights, IMAGENET, method="linear")


def test_classes_it_does_not_know_are_named(family: str, weights: Path) -> None:
    with pytest.raises(UsageError, match=r"1000.*\b2\b") as raised:
        model_of(family, weights, ("n01440764", "beetle"))
    assert raised.value.code == "task.classifier-mismatch"
    assert "beetle" in raised.value.why and "n01440764" not in raised.value.why


def test_a_backbone_without_a_classifier_says_so() -> None:
    raw = {
        "backbone": "vit_demo_3",
        "dataset": "demo",
        "method": "toast",
        "task": {"name": "classification", "head": "own"},
    }
    with pytest.raises(UsageError) as refused:
        build_model(build_recipe(raw, {}, origin="a test"), ("a", "b"))
    assert refused.value.code == "task.no-classifier"


def test_a_task_is_set_without_being_named() -> None:
    raw = {"backbone": "vit_demo_3", "dataset": "demo", "method": "toast", "task": {"label_smoothing": 0.25}}
    task = build_recipe(raw, {}, origin="a test").task
    assert task.model_dump()["label_smoothing"] == 0.25 and task.name == "classification"
