"""What a run says about the normalization of images, for weights that do not record it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from toast_cli.backbones.base import Preprocessing
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.training.session import Session

WARNING = "Warning: w.pth does not record how images are normalized."


def describe(weights: str | None, note: str | None, **images: Any) -> list[str]:
    backbone = SimpleNamespace(
        notes=["A note."],
        preprocessing=Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        normalization_note=note,
    )
    recipe = SimpleNamespace(backbone=SimpleNamespace(name="vit_x", weights=weights), images=ImageOptions(**images))
    session: Any = SimpleNamespace(model=SimpleNamespace(backbone=backbone), recipe=recipe)
    return Session.describe_backbone(session)


@pytest.mark.parametrize("weights", [None, "none"])
def test_published_and_random_weights_need_no_line(weights: str | None) -> None:
    assert describe(weights, None) == ["A note."]


def test_the_assumption_is_a_line_of_its_own_unless_the_recipe_sets_it() -> None:
    assert describe("w.pth", WARNING) == ["A note.", WARNING]
    (_, line) = describe("w.pth", WARNING, normalize="imagenet")
    assert "Warning" not in line and "as set in the recipe" in line
    (_, line) = describe("w.pth", None)
    assert line.startswith("Warning: w.pth does not record") and "as for the published weights of vit_x" in line
    for assumed in ("mean (0.5, 0.5, 0.5)", "std (0.5", "32 × 32 pixels", "bicubic", "crop 1 (center)"):
        assert assumed in line


def test_published_weights_without_preprocessing_are_warned_of_too() -> None:
    assert describe(None, "Warning: hf:x has none.") == ["A note.", "Warning: hf:x has none."]
