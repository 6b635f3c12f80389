"""A pre-tuned feedback path starts every model on the same weights, and no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from toast_cli.model.model import Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.steering.steering import Steering
from toast_cli.storage.pretuned import initialize_from_artifact, resolve_artifact_path
from toast_cli.utils.errors import ToastError


def made(**backbone: Any) -> tuple[Model, Recipe]:
    raw = {
        "backbone": {"name": "vit_demo_3", **backbone},
        "dataset": "demo-segmentation",
        "method": {"name": "toast", "feedback": "early"},
        "init_from": "shipped",
    }
    recipe = build_recipe(raw, {}, origin="a test")
    return build_model(recipe, ("ground", "cat")), recipe


@pytest.mark.parametrize("size", [None, 96, [64, 128]])
def test_it_starts_a_model_at_whatever_size_its_images_are(size: Any) -> None:
    model, recipe = made(image_size=size)
    drawn = torch.random.get_rng_state()
    initialize_from_artifact(resolve_artifact_path(recipe), model, recipe)
    assert torch.equal(torch.random.get_rng_state(), drawn), "what is random later does not depend on the size"
    kept = load_file(resolve_artifact_path(recipe) / "feedback.safetensors")
    steering = model.adapted.steering
    assert isinstance(steering, Steering)
    assert torch.equal(steering.feedback.A[0].weight, kept["A.0"]) and kept["A.0"].abs().sum() > 0


@pytest.mark.parametrize("size", [None, 96])
def test_weights_that_differ_are_refused_at_every_size(size: Any) -> None:
    model, recipe = made(weights="none", image_size=size)
    with pytest.raises(ToastError) as refused:
        initialize_from_artifact(resolve_artifact_path(recipe), model, recipe)
    assert refused.value.code == "artifact.wrong-backbone"
