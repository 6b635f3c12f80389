"""Trained and total parameters of LLaMA, to the last digit, without building it in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from toast_cli import registry
from toast_cli.backbones.base import Backbone
from toast_cli.model.model import count_elements


def on_meta(name: str) -> Backbone:
    card = registry.load_backbone_card(name)
    with torch.device("meta"):
        return card.build(card.options(name=name, weights="none"))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in registry.list_names(registry.BACKBONES)
        if registry.load_entry(registry.BACKBONES, name).family == "llama"
    ],
)
def test_a_card_counts_what_the_model_has(name: str) -> None:
    assert count_elements(on_meta(name).module.parameters()) == registry.load_backbone_card(name).parameters


@pytest.mark.parametrize(
    ("name", "method", "settings", "expected"),
    [
        ("llama_7b", "toast", {"train_P": False, "train_A": False}, 32 * 4096**2 + 4096),
        ("llama_7b", "toast", {"train_P": False}, 2 * 32 * 4096**2 + 4096),
        ("llama_7b", "toast", {}, 65 * 4096**2 + 4096),
        ("llama_7b", "toast-lite", {}, 18_878_464),
        ("llama_7b", "toast-lite", {"train_P": False}, 2_101_248),
        ("llama_13b", "toast", {"train_P": False, "train_A": False}, 40 * 5120**2 + 5120),
        ("llama_13b", "toast-lite", {}, 40 * 4 * 4 * 5120 + 5120**2 + 5120),
    ],
)
def test_a_method_trains_as_many_parameters_as_the_paper_counts(
    name: str, method: str, settings: dict[str, Any], expected: int
) -> None:
    registered = registry.load_entry(registry.METHODS, method)
    backbone = on_meta(name)
    with torch.device("meta"):
        adapted = registered.build(registered.options(**settings), backbone)
    assert count_elements(parameter for parameter in adapted.parameters() if parameter.requires_grad) == expected
