"""Tiny models of timm's `Eva`."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import LayerNorm, RmsNorm
from timm.models import generate_default_cfgs, register_model
from timm.models.eva import Eva, _create_eva

TINY = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
SIZES = {
    "eva_tiny_dinov3_bias": (32, 32),
    "eva_tiny_dinov3": (32, 32),
    "eva_tiny_eva02": (32, 32),
    "eva_tiny_post_norm": (32, 32),
    "eva_tiny_pe": (32, 32),
    "eva_tiny_mixed": (32, 32),
    "eva_tiny_grouped": (32, 48),
}
default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, *size),
            "fixed_input_size": True,
            "num_classes": 5,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for name, size in SIZES.items()
    }
)
"""Read by timm's `register_model`."""
DINOV3 = {
    "dynamic_img_size": True,
    "init_values": 0.5,
    "rope_type": "dinov3",
    "rope_temperature": 100,
    "rope_rotate_half": True,
    "use_rot_pos_emb": True,
    "use_abs_pos_emb": False,
    "num_reg_tokens": 2,
    "use_fc_norm": False,
    "norm_layer": partial(LayerNorm, eps=1e-5),
}


def create(name: str, given: dict[str, Any], pretrained: bool, arguments: dict[str, Any]) -> Eva:
    return _create_eva(name, pretrained, **{**TINY, **given, **arguments})


@register_model
def eva_tiny_dinov3_bias(pretrained: bool = False, **arguments: Any) -> Eva:
    """Like LingBot-Vision: one projection with biases of q and v apart, registers, pooled by the class token."""
    return create("eva_tiny_dinov3_bias", {**DINOV3, "global_pool": "token"}, pretrained, arguments)


@register_model
def eva_tiny_dinov3(pretrained: bool = False, **arguments: Any) -> Eva:
    """Like DINOv3: one projection without biases, registers, any image size, average pooling after the norm."""
    return create("eva_tiny_dinov3", {**DINOV3, "qkv_bias": False}, pretrained, arguments)


@register_model
def eva_tiny_eva02(pretrained: bool = False, **arguments: Any) -> Eva:
    """Like EVA-02: three projections, norms in attention and SwiGLU, two kinds of positions."""
    eva02: dict[str, Any] = {
        "qkv_fused": False,
        "mlp_ratio": 4 * 2 / 3,
        "swiglu_mlp": True,
        "scale_mlp": True,
        "scale_attn_inner": True,
        "use_rot_pos_emb": True,
        "ref_feat_shape": (2, 2),
        "global_pool": "token",
    }
    return create("eva_tiny_eva02", eva02, pretrained, arguments)


@register_model
def eva_tiny_post_norm(pretrained: bool = False, **arguments: Any) -> Eva:
    """Like EVA-02's largest model: norms after attention and MLP, absolute positions only."""
    return create("eva_tiny_post_norm", {"use_post_norm": True, "global_pool": "token"}, pretrained, arguments)


@register_model
def eva_tiny_pe(pretrained: bool = False, **arguments: Any) -> Eva:
    """Like the Perception Encoder: an attention-pool head, a norm before the blocks."""
    pe: dict[str, Any] = {
        "global_pool": "map",
        "attn_type": "rope",
        "use_pre_transformer_norm": True,
        "use_rot_pos_emb": True,
        "ref_feat_shape": (4, 4),
        "rope_grid_offset": 1.0,
        "rope_grid_indexing": "xy",
    }
    return create("eva_tiny_pe", pe, pretrained, arguments)


@register_model
def eva_tiny_mixed(pretrained: bool = False, **arguments: Any) -> Eva:
    """Like the ROPE ViTs: learned rotary positions of every block, pooled by the class token."""
    mixed: dict[str, Any] = {
        "attn_type": "rope",
        "global_pool": "token",
        "init_values": 0.5,
        "no_embed_class": True,
        "use_rot_pos_emb": True,
        "rope_grid_indexing": "xy",
        "rope_temperature": 10.0,
        "rope_type": "mixed",
    }
    return create("eva_tiny_mixed", mixed, pretrained, arguments)


@register_model
def eva_tiny_grouped(pretrained: bool = False, **arguments: Any) -> Eva:
    """Like Sapiens 2: fewer keys and values than queries in some blocks, norms of q and k, images that are not square.

    Its rotary positions are scaled at random in training.
    """
    grouped: dict[str, Any] = {
        **DINOV3,
        "num_heads": 4,
        "num_kv_heads": (4, 2, 4),
        "attn_type": "rope",
        "qkv_fused": False,
        "qk_norm": True,
        "global_pool": "token",
        "swiglu_mlp": True,
        "attn_only_layer_scale": True,
        "rope_rescale_coords": 2.0,
        "norm_layer": partial(RmsNorm, eps=1e-6),
    }
    return create("eva_tiny_grouped", grouped, pretrained, arguments)


MODELS = [f"timm:{name}" for name in SIZES]
