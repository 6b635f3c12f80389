"""Test-time flips: scores are the mean of those of an image and its mirror image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from toast_cli.model.mirror_average import average_with_mirror, mirror_images, require_mirrorable
from toast_cli.model.model import Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.tasks.base import Target
from toast_cli.utils.errors import UsageError

CLASSES = ("a", "b", "c")


def model_of(dataset: str = "demo", **task: Any) -> Model:
    raw = {
        "backbone": {"name": "vit_demo_3", "weights": "none"},
        "dataset": dataset,
        "method": "linear",
        "task": {"name": "classification", **task},
    }
    model = build_model(build_recipe(raw, {}, origin="a test"), CLASSES).eval()
    for weight in model.head.parameters():
        torch.nn.init.normal_(weight)
    return model


@torch.no_grad()
def test_the_probabilities_of_an_image_and_its_mirror_image_are_averaged() -> None:
    model, images = model_of(), torch.randn(3, 3, 64, 64)
    plain, mirrored = model(images), model(images.flip(-1))
    outputs = average_with_mirror(model, {"image": images}, plain)
    expected = (plain.softmax(-1) + mirrored.softmax(-1)) / 2
    torch.testing.assert_close(model.objective.compute_scores(outputs), expected)
    assert not torch.allclose(plain.softmax(-1), expected, atol=1e-3)


@torch.no_grad()
def test_pixels_are_mirrored_back_within_each_image() -> None:
    model = model_of("demo-segmentation", name="segmentation", width=16)
    images, extents = torch.zeros(2, 3, 64, 96), torch.tensor([[64, 96], [64, 70]])
    for image, (height, width) in zip(images, extents.tolist(), strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    batch = {"image": images, "extent": extents}
    outputs = average_with_mirror(model, batch, model.objective.predict(model, batch))
    for image, scores, (height, width) in zip(images, outputs, extents.tolist(), strict=True):
        alone = {"image": image[None, :, :height, :width], "extent": torch.tensor([[height, width]])}
        flipped = {**alone, "image": alone["image"].flip(-1)}
        views = model.objective.predict(model, alone), model.objective.predict(model, flipped).flip(-1)
        expected = sum(view.softmax(1) for view in views) / 2
        torch.testing.assert_close(scores[None, :, :height, :width].softmax(1), expected, atol=1e-4, rtol=1e-4)


def test_images_are_mirrored_within_their_extent_and_padding_stays() -> None:
    padded = torch.tensor([[[[1.0, 2, 3, 0], [4, 5, 6, 0], [0, 0, 0, 0]]]])
    mirrored = mirror_images(padded, torch.tensor([[2, 3]]))
    assert mirrored.tolist() == [[[[3, 2, 1, 0], [6, 5, 4, 0], [0, 0, 0, 0]]]]


@pytest.mark.parametrize("target", ["labels", "number"])
def test_independent_labels_and_numbers_are_averaged_by_their_own_scores(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = model_of().objective
    monkeypatch.setattr(type(objective), "target", target)
    first, second = torch.randn(2, 4), torch.randn(2, 4)
    averaged = objective.average_outputs([first, second])
    if target == "number":
        torch.testing.assert_close(averaged, (first + second) / 2)
    else:
        torch.testing.assert_close(averaged.sigmoid(), (first.sigmoid() + second.sigmoid()) / 2)


def test_models_without_scores_are_refused() -> None:
    with pytest.raises(UsageError) as refused:
        require_mirrorable(model_of("demo-segmentation", name="token-labels").objective)
    assert refused.value.code == "task.cannot-flip"
