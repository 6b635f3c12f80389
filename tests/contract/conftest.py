"""Every registered backbone, built small enough to run here, with random weights that a test can rebuild."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from tests import causal_models
from tests.contract.tiny_models import list_tiny_models
from toast_cli import registry
from toast_cli.backbones.base import Backbone

TINY_MODELS = list_tiny_models()

LARGE, HUGE = 10_000_000, 2_000_000_000
"""Backbones with more parameters are checked in the slow suite, or nowhere: no test machine holds them."""

LANGUAGE_MODELS = Path(__file__).parent / "language_models"

OF_EACH_FAMILY = {
    *("vit_demo", "convnext:test_convnext", f"llama:{LANGUAGE_MODELS / 'llama'}"),
    *(names[0] for names in TINY_MODELS.values()),
}
"""Those that are checked before every commit; all others are checked with the commands."""

ANY_OF_A_FAMILY = [
    *("vit:test_vit", "vit:test_vit2", "vit:test_vit3", "vit:test_vit4"),
    *("convnext:test_convnext", "convnext:test_convnext2", "convnext:test_convnext3", "convnext:convnext_atto_ols"),
    *(name for names in TINY_MODELS.values() for name in names),
    *(f"llama:{LANGUAGE_MODELS / kind}" for kind in sorted(folder.name for folder in LANGUAGE_MODELS.iterdir())),
    *(f"lm:{causal_models.get_model_folder(kind)}" for kind in (*causal_models.DAILY, *causal_models.NIGHTLY)),
]
"""Small models that differ where registered ones agree: class token, registers, pooling, norms, stems, heads, masks."""


def get_id(name: str) -> str:
    """Return the name of a test's parameter, which is the same in every process."""
    return f"lm-{Path(name).name}" if name.startswith("lm:") else name.rpartition("/")[2]


def registered() -> list[object]:
    names = registry.list_names(registry.BACKBONES)
    assert "vit_demo_3" in names and "vit_b16" in names
    return [pytest.param(name, marks=marks(name), id=get_id(name)) for name in [*names, *ANY_OF_A_FAMILY]]


def marks(name: str) -> list[pytest.MarkDecorator]:
    if name.startswith("lm:"):
        return [pytest.mark.e2e if Path(name).name in causal_models.DAILY else pytest.mark.nightly]
    parameters = registry.load_backbone_card(name).parameters or 0
    if parameters > HUGE:
        too_large = "too large to build; small ones of its family stand for it"
        return [pytest.mark.e2e, pytest.mark.skip(reason=too_large)]
    if parameters > LARGE:
        return [pytest.mark.slow]
    return [] if name in OF_EACH_FAMILY else [pytest.mark.e2e]


def write_configuration(name: str) -> None:
    """Write the configuration of a model from the table of causal models."""
    if name.startswith("lm:"):
        causal_models.write_model_folder(Path(name).name)


@cache
def built(name: str) -> Backbone:
    """One instance per backbone for the whole suite: every test must leave it as it found it."""
    torch.manual_seed(0)
    card = registry.load_backbone_card(name)
    backbone = card.build(card.options(name=name, weights="none"))
    backbone.module.eval().requires_grad_(False)
    for name, parameter in backbone.module.named_parameters():
        if not parameter.any():  # a branch whose scale starts at zero, as SwinV2's, would hide every signal
            parameter.normal_(std=0.01 if "bias" in name else 0.1)
    return backbone


@pytest.fixture(params=registered())
def name(request: pytest.FixtureRequest) -> str:
    write_configuration(str(request.param))
    return str(request.param)


@pytest.fixture
def backbone(name: str) -> Backbone:
    return built(name)
