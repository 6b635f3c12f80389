from __future__ import annotations

import pytest
import torch

from toast_cli.model.model import Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.training.step import TrainingStep

CLASSES = ("a", "b", "c")


def model_of(**task: float) -> Model:
    raw = {"backbone": "vit_demo_3", "dataset": "demo", "method": "linear", "task": {"name": "classification", **task}}
    return build_model(build_recipe(raw, {}, origin="a test"), CLASSES)


def batch() -> dict[str, torch.Tensor]:
    return {"image": torch.rand(4, 3, 64, 64), "label": torch.tensor([0, 1, 2, 0])}


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_images_and_targets_are_mixed_in_the_same_shares(kind: str) -> None:
    objective = model_of(**{kind: 1.0}).objective
    plain = {"image": torch.zeros(2, 3, 96, 96), "label": torch.tensor([0, 1])}
    plain["image"][1] = 1
    mixed = objective.apply_mixup(plain)
    assert torch.equal(plain["label"], mixed["label"])
    bright = mixed["image"].mean(dim=(1, 2, 3))
    torch.testing.assert_close(mixed["target"][:, 1], bright, atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed["target"].sum(dim=1), torch.ones(2))


def test_training_mixes_and_evaluation_does_not() -> None:
    model = model_of(mixup=1.0)
    step, images = TrainingStep(model), batch()
    model.train()
    assert not torch.equal(step(images).outputs, step(images).outputs)
    model.eval()
    assert torch.equal(step(images).outputs, step(images).outputs)


def test_nothing_is_mixed_unless_asked() -> None:
    images = batch()
    assert model_of().objective.apply_mixup(images) is images
