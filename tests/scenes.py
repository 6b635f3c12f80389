"""A model with two passes on the demo's backbone, and scenes to show it, for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from toast_cli.data.base import Sample
from toast_cli.data.demo.scenes import DemoOptions, open_demo
from toast_cli.model.model import Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.steering.least_squares import initialize_least_squares
from toast_cli.storage.adapter import build_adapter_config, save_adapter_folder
from toast_cli.visualize.view import AttentionViewer

CLASSES = ("ringed", "two-spotted", "one-lined", "plus", "one-barred")


def recipe_of(method: str = "toast", **more: object) -> Recipe:
    raw = {"backbone": "vit_demo_3", "dataset": "demo", "method": method, "device": "cpu", **more}
    return build_recipe(raw, {}, origin="a test")


def demo_model(method: str = "toast", seed: int = 0, **more: object) -> Model:
    """With a feedback path (where the method has one) that moves attention, though nothing was learned."""
    recipe = recipe_of(method, seed=seed, **more)
    model = build_model(recipe, open_demo(DemoOptions(), None).classes).eval()
    steering = model.adapted.steering
    if steering is not None:
        scene = viewer_of(model).transform(scenes(1)[0].image)[0]
        initialize_least_squares(steering, model.backbone, [scene[None]])  # type: ignore[arg-type]
        torch.manual_seed(seed)
        for layer in steering.feedback.B:  # type: ignore[union-attr]
            torch.nn.init.normal_(layer.weight, std=0.08)
    return model


def viewer_of(model: Model, name: str = "a run", **how: object) -> AttentionViewer:
    recipe = recipe_of()
    return AttentionViewer(name, model, recipe.images, open_demo(DemoOptions(), None).classes, recipe=recipe, **how)  # type: ignore[arg-type]


def scenes(count: int) -> list[Sample]:
    split = open_demo(DemoOptions(), None).splits["test"]
    return [split.load(index) for index in range(count)]


def kept(model: Model, folder: Path, **more: object) -> Path:
    """The model of `demo_model` as an adapter folder, its demo small."""
    method = "toast" if model.adapted.steering is not None else "linear"
    small = {"name": "demo", "test_images": 12, "train_images": 5, "val_images": 5}
    recipe = recipe_of(method, **{"dataset": small, **more})
    save_adapter_folder(
        folder,
        model.get_trained_parameters(),
        {},
        build_adapter_config(model, recipe, open_demo(DemoOptions(), None).classes),
        "",
    )
    return folder
