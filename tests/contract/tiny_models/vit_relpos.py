"""ViTs with relative positions: from a table or an MLP, of each block or shared, norms before or after, class token."""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from timm.models.vision_transformer_relpos import (
    ResPostRelPosBlock,
    VisionTransformerRelPos,
    _create_vision_transformer_relpos,
)

TINY = {"img_size": (32, 24), "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2}


def _create(name: str, pretrained: bool, defaults: dict[str, Any], given: dict[str, Any]) -> VisionTransformerRelPos:
    return _create_vision_transformer_relpos(name, pretrained=pretrained, **{**TINY, **defaults, **given})


@register_model
def test_vit_relpos_table(pretrained: bool = False, **kwargs: Any) -> VisionTransformerRelPos:
    """Build a ViT with a table of position biases in each block, the class token as output, and norms of q and k."""
    defaults = {"rel_pos_type": "bias", "class_token": True, "global_pool": "token", "qk_norm": True}
    return _create("test_vit_relpos_table", pretrained, {**defaults, "init_values": 0.1}, kwargs)


@register_model
def test_vit_relpos_shared(pretrained: bool = False, **kwargs: Any) -> VisionTransformerRelPos:
    """Build a ViT whose blocks share a position bias from an MLP."""
    defaults = {"rel_pos_type": "mlp", "rel_pos_dim": 16, "shared_rel_pos": True, "fc_norm": True}
    return _create("test_vit_relpos_shared", pretrained, {**defaults, "init_values": 0.1}, kwargs)


@register_model
def test_vit_relpos_rpn(pretrained: bool = False, **kwargs: Any) -> VisionTransformerRelPos:
    """Build a ViT with norms after attention and MLP."""
    defaults = {"block_fn": ResPostRelPosBlock, "init_values": 0.1, "qkv_bias": False}
    return _create("test_vit_relpos_rpn", pretrained, defaults, kwargs)


MODELS = ["timm:test_vit_relpos_table", "timm:test_vit_relpos_shared", "timm:test_vit_relpos_rpn"]
