"""Trained parameters of ViT-B with 200 classes, as the page of methods lists them, without building it in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from toast_cli import registry
from toast_cli.model.model import BackboneSnapshot, Model, count_elements
from toast_cli.tasks import classification

PAGE = Path(__file__).parent.parent.parent.parent / "docs" / "reference" / "methods.md"


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        ("toast", {}, 14_900_168),
        ("toast", {"train_P": False}, 14_310_344),
        ("toast-lite", {}, 891_848),
        ("linear", {}, 153_800),
        ("full", {}, 85_798_656 + 153_800),
        ("lora", {}, 301_256),
        ("vpt", {}, 1_075_400),
    ],
)
def test_a_method_trains_as_many_parameters_as_the_page_lists(
    method: str, settings: dict[str, Any], expected: int
) -> None:
    card, registered = registry.load_backbone_card("vit_b16"), registry.load_entry(registry.METHODS, method)
    with torch.device("meta"):
        backbone = card.build(card.options(name="vit_b16", weights="none"))
        adapted = registered.build(registered.options(**settings), backbone)
        task = classification.build_classification(
            classification.ClassificationOptions(), backbone, tuple(map(str, range(200)))
        )
    assert (
        count_elements(Model(adapted, task, BackboneSnapshot("", frozenset())).get_trained_parameters().values())
        == expected
    )
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{method}`")]
    assert any(f"| {expected:,} |" in row for row in rows)
