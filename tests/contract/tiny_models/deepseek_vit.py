"""Vision towers of DeepSeek: a classifier, and an encoder with an aligner."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._builder import build_model_with_cfg
from timm.models.deepseek_vit import DeepseekVitClassifier, DeepseekVitEncoder

TINY = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0}
CONFIG = {"input_size": (3, 64, 64), "num_classes": 0, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
NAMES = ("test_deepseek_vit", "test_deepseek_vit_enc")
default_cfgs = generate_default_cfgs(dict.fromkeys(NAMES, CONFIG))


@register_model
def test_deepseek_vit(pretrained: bool = False, **kwargs: Any) -> DeepseekVitClassifier:
    return build_model_with_cfg(DeepseekVitClassifier, "test_deepseek_vit", pretrained, **{**TINY, **kwargs})


@register_model
def test_deepseek_vit_enc(pretrained: bool = False, **kwargs: Any) -> DeepseekVitEncoder:
    arguments = {**TINY, "img_size": (64, 96), "out_features": 24, "kwargs_filter": ("num_classes", "drop_rate")}
    return build_model_with_cfg(DeepseekVitEncoder, "test_deepseek_vit_enc", pretrained, **{**arguments, **kwargs})


MODELS = [f"timm:{name}" for name in NAMES]
