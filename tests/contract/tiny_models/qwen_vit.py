"""Vision towers of Qwen3: a classifier, one with a merger, and encoders without a classifier."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._builder import build_model_with_cfg
from timm.models.qwen3_vit import Qwen3VitClassifier, Qwen3VitEncoder

TINY = {"img_size": 64, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0, "pos_embed_grid_size": 6}
CONFIG = {"input_size": (3, 64, 64), "num_classes": 0, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
NAMES = ("test_qwen3_vit", "test_qwen3_vit_merge", "test_qwen3_vit_enc", "test_qwen3_vit_enc_avg")
default_cfgs = generate_default_cfgs(dict.fromkeys(NAMES, CONFIG))


def build(kind: type, name: str, pretrained: bool, **kwargs: Any) -> Any:
    return build_model_with_cfg(kind, name, pretrained, **{**TINY, **kwargs})


@register_model
def test_qwen3_vit(pretrained: bool = False, **kwargs: Any) -> Qwen3VitClassifier:
    return build(Qwen3VitClassifier, "test_qwen3_vit", pretrained, **kwargs)


@register_model
def test_qwen3_vit_merge(pretrained: bool = False, **kwargs: Any) -> Qwen3VitClassifier:
    arguments = {"encoder_pool": "merge", "out_features": 24, **kwargs}
    return build(Qwen3VitClassifier, "test_qwen3_vit_merge", pretrained, **arguments)


@register_model
def test_qwen3_vit_enc(pretrained: bool = False, **kwargs: Any) -> Qwen3VitEncoder:
    arguments = {"img_size": (64, 96), "out_features": 24, "kwargs_filter": ("num_classes", "drop_rate"), **kwargs}
    return build(Qwen3VitEncoder, "test_qwen3_vit_enc", pretrained, **arguments)


@register_model
def test_qwen3_vit_enc_avg(pretrained: bool = False, **kwargs: Any) -> Qwen3VitEncoder:
    arguments = {"global_pool": "avg", "kwargs_filter": ("num_classes", "drop_rate"), **kwargs}
    return build(Qwen3VitEncoder, "test_qwen3_vit_enc_avg", pretrained, **arguments)


MODELS = [f"timm:{name}" for name in NAMES]
