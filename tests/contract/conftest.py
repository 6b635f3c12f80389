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

REAL_SIZES = (
    *("convnext_t", "dinov3_s16", "swinv2_t", "resnet50", "timm:beit_base_patch16_224"),
    *("timm:vit_relpos_small_patch16_224", "timm:naflexvit_base_patch16_gap", "timm:hiera_tiny_224"),
    *("timm:mvitv2_tiny", "timm:pvt_v2_b0", "timm:maxvit_nano_rw_256", "timm:cait_xxs24_224"),
    *("timm:xcit_nano_12_p16_224", "timm:levit_128s", "timm:qwen3_vit_88m_enc", "timm:gemma4_vit_167m"),
    *("timm:efficientnet_b0", "torchvision:swin_t", "torchvision:vit_b_16"),
)
"""A model of each family in a size that people use, checked every night.

Models of transformers have tests of their own. The smallest DeepSeek tower has 412 million parameters: too many.
"""

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
    every = [*names, *(name for name in (*ANY_OF_A_FAMILY, *REAL_SIZES) if name not in names)]
    return [pytest.param(name, marks=marks(name), id=get_id(name)) for name in every]


def marks(name: str) -> list[pytest.MarkDecorator]:
    if name in REAL_SIZES:
        return [pytest.mark.nightly]
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
