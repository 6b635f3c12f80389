"""Vision towers of Gemma 4: classifiers with and without soft tokens, and an encoder; clamps, grouped queries."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._builder import build_model_with_cfg
from timm.models.gemma4_vit import Gemma4VitClassifier, Gemma4VitEncoder

TINY = {
    **{"embed_dim": 32, "depth": 3, "num_heads": 4, "head_dim": 8, "intermediate_size": 64},
    **{"patch_size": 8, "position_embedding_size": 16},
}
CONFIG = {"input_size": (3, 48, 48), "num_classes": 0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
NAMES = ("test_gemma4_vit", "test_gemma4_vit_soft", "test_gemma4_vit_enc", "test_gemma4_vit_enc_avg")
default_cfgs = generate_default_cfgs(dict.fromkeys(NAMES, CONFIG))


def build(kind: type, name: str, pretrained: bool, **kwargs: Any) -> Any:
    return build_model_with_cfg(kind, name, pretrained, **{**TINY, **kwargs})


@register_model
def test_gemma4_vit(pretrained: bool = False, **kwargs: Any) -> Gemma4VitClassifier:
    return build(Gemma4VitClassifier, "test_gemma4_vit", pretrained, use_clipped_linears=True, **kwargs)


@register_model
def test_gemma4_vit_soft(pretrained: bool = False, **kwargs: Any) -> Gemma4VitClassifier:
    arguments = {"encoder_pool": "soft", "standardize": True, "num_kv_heads": 2, **kwargs}
    return build(Gemma4VitClassifier, "test_gemma4_vit_soft", pretrained, **arguments)


@register_model
def test_gemma4_vit_enc(pretrained: bool = False, **kwargs: Any) -> Gemma4VitEncoder:
    arguments = {"global_pool": "soft", "standardize": True, "kwargs_filter": ("num_classes",), **kwargs}
    return build(Gemma4VitEncoder, "test_gemma4_vit_enc", pretrained, **arguments)


@register_model
def test_gemma4_vit_enc_avg(pretrained: bool = False, **kwargs: Any) -> Gemma4VitEncoder:
    arguments = {"global_pool": "avg", "kwargs_filter": ("num_classes",), **kwargs}
    return build(Gemma4VitEncoder, "test_gemma4_vit_enc_avg", pretrained, **arguments)


MODELS = [f"timm:{name}" for name in NAMES]
