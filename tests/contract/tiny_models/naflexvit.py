"""NaFlexViTs: learned and factorized positions, an average, a class token or an attention pool, rotary positions."""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg, _create_naflexvit

SIZE = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2, "pos_embed_grid_size": (3, 3)}


def _create(name: str, pretrained: bool, given: dict[str, Any], **settings: Any) -> NaFlexVit:
    config = given.pop("pretrained_cfg", None) or {"input_size": (3, 32, 48), "fixed_input_size": False}
    cfg = NaFlexVitCfg(**{**SIZE, **settings})
    return _create_naflexvit(name, pretrained=pretrained, cfg=cfg, pretrained_cfg=config, **given)


@register_model
def test_naflexvit(pretrained: bool = False, **kwargs: Any) -> NaFlexVit:
    """Build a NaFlexViT with an average of the patches, a register, and positions that keep the aspect ratio."""
    settings = {"global_pool": "avg", "reg_tokens": 1, "init_values": 0.1, "pos_embed_ar_preserving": True}
    return _create("test_naflexvit", pretrained, kwargs, **settings)


@register_model
def test_naflexvit_map(pretrained: bool = False, **kwargs: Any) -> NaFlexVit:
    """Build a NaFlexViT with an attention pool and factorized positions."""
    return _create("test_naflexvit_map", pretrained, kwargs, global_pool="map", pos_embed="factorized")


@register_model
def test_naflexvit_rope(pretrained: bool = False, **kwargs: Any) -> NaFlexVit:
    """Build a NaFlexViT with rotary positions of each block, separate q, k, v and a class token as output."""
    settings = {"rope_type": "mixed", "qkv_fused": False, "attn_gated": True, "class_token": True}
    return _create("test_naflexvit_rope", pretrained, kwargs, global_pool="token", pos_embed="none", **settings)


MODELS = ["timm:test_naflexvit", "timm:test_naflexvit_map", "timm:test_naflexvit_rope"]
