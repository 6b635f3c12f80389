"""ViTs of timm with other blocks, pools and stems than its own tiny models have."""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from timm.models.deit import _create_deit
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
    _create_vision_transformer,
)
from timm.models.vision_transformer_hybrid import _create_vision_transformer_hybrid, _resnetv2

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2}


def _create(name: str, pretrained: bool, defaults: dict[str, Any], given: dict[str, Any]) -> VisionTransformer:
    return _create_vision_transformer(name, pretrained=pretrained, **{**TINY, **defaults, **given})


@register_model
def test_vit_parallel(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build a ViT whose blocks run attention and MLP in parallel, from one projection."""
    defaults = {"block_fn": ParallelScalingBlock, "qkv_bias": False, "reg_tokens": 1, "class_token": False}
    return _create("test_vit_parallel", pretrained, {**defaults, "global_pool": "avg", "no_embed_class": True}, kwargs)


@register_model
def test_vit_differential(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build a ViT with differential attention."""
    return _create("test_vit_differential", pretrained, {"attn_layer": "diff"}, kwargs)


@register_model
def test_vit_differential_parallel(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build a ViT whose blocks run differential attention and MLP in parallel."""
    return _create("test_vit_differential_parallel", pretrained, {"block_fn": DiffParallelScalingBlock}, kwargs)


@register_model
def test_vit_18x2(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build a ViT with two attentions in parallel in every block."""
    return _create("test_vit_18x2", pretrained, {"block_fn": ParallelThingsBlock}, kwargs)


@register_model
def test_vit_rpn(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build a ViT with norms after attention and MLP."""
    return _create("test_vit_rpn", pretrained, {"block_fn": ResPostBlock, "init_values": 0.1}, kwargs)


@register_model
def test_vit_prr(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build a ViT with registers, any image size and an attention pool without learned query."""
    defaults = {"reg_tokens": 2, "class_token": False, "global_pool": "prr", "dynamic_img_size": True}
    return _create("test_vit_prr", pretrained, defaults, kwargs)


@register_model
def test_vit_hybrid(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build a ViT on the overlapping, strided convolution and pool of a ResNetV2, for patches of 8 pixels."""
    arguments = {**TINY, "patch_size": 2, **kwargs}
    stem = _resnetv2(layers=())
    return _create_vision_transformer_hybrid("test_vit_hybrid", backbone=stem, pretrained=pretrained, **arguments)


@register_model
def test_deit_distilled(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build a distilled DeiT, whose features are the mean of two tokens."""
    return _create_deit("test_deit_distilled", pretrained=pretrained, distilled=True, **{**TINY, **kwargs})


MODELS = [
    f"timm:{build.__name__}"
    for build in (
        test_vit_parallel,
        test_vit_differential,
        test_vit_differential_parallel,
        test_vit_18x2,
        test_vit_rpn,
        test_vit_prr,
        test_vit_hybrid,
        test_deit_distilled,
    )
]
