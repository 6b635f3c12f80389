"""Exports for timm, on a tiny model of every family of timm: timm opens them and gives the run's logits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tests.contract.conftest import TINY_MODELS, built
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.export.formats.timm import build_data_config, build_timm_classifier
from toast_cli.methods.adapted_model import AdaptedModel
from toast_cli.model.model import BackboneSnapshot, Model
from toast_cli.tasks.classification import ClassificationOptions, build_classification
from toast_cli.utils.errors import UsageError

NOT_OF_TIMM = {"hf_vision", "torchvision_models"}
ENCODERS = {"deepseek_vit", "gemma_vit", "qwen_vit"}
"""Families with encoders of language models, which timm builds without a classifier."""

NAMES = [
    *("vit:test_vit", "vit:test_vit2", "vit:test_vit3", "convnext:test_convnext", "convnext:test_convnext2"),
    *(name for family, names in TINY_MODELS.items() if family not in NOT_OF_TIMM for name in names),
]


def make_linear(name: str) -> Any:
    """Return a linear probe on a tiny model, with a random head."""
    backbone = built(name)
    torch.manual_seed(0)
    objective = build_classification(ClassificationOptions(), backbone, ("a", "b", "c"))
    nn.init.normal_(objective.head.weight)
    model = Model(AdaptedModel(backbone, (), None), objective, BackboneSnapshot.from_backbone(backbone)).eval()
    recipe = SimpleNamespace(backbone=SimpleNamespace(name=name), images=ImageOptions())
    return SimpleNamespace(model=model, recipe=recipe)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_timm_opens_a_folder_and_gives_the_runs_logits(name: str, tmp_path: Path) -> None:
    loaded = make_linear(name)
    family = next((family for family, names in TINY_MODELS.items() if name in names), "")
    if not hasattr(loaded.model.backbone.module, "reset_classifier"):
        assert family in ENCODERS
        return
    network: Any = build_timm_classifier(loaded)
    data = build_data_config(loaded)
    timm.models.save_for_hf(network, str(tmp_path), data_config=data, safe_serialization=True)
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = loaded.model.backbone.example(3)
    expected = loaded.model(images)
    assert torch.allclose(opened(images), expected, atol=1e-4 * max(1.0, float(expected.std())))
    found = timm.data.resolve_model_data_config(opened)
    assert {key: tuple(found[key]) if isinstance(found[key], list) else found[key] for key in data} == data


def test_a_model_with_more_before_its_classifier_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_linear("vit:test_vit")
    monkeypatch.setattr(type(loaded.model.backbone.module), "get_classifier", lambda _: nn.Identity())
    with pytest.raises(UsageError, match="between its pooled features") as error:
        build_timm_classifier(loaded)
    assert error.value.code == "export.other-pooling"
