"""Tiny Hieras and image encoders of SAM 2: mask units, pooled queries, windows with padding, unused strides."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.hiera import _cfg, _create_hiera
from timm.models.hieradet_sam2 import _cfg as _sam_cfg
from timm.models.hieradet_sam2 import _create_hiera_det
from torch import nn

MODELS = ["timm:tiny_hiera", "timm:tiny_hieradet", "timm:tiny_hiera_abswin"]

default_cfgs = generate_default_cfgs(
    {
        "tiny_hiera": _cfg(input_size=(3, 64, 32)),
        "tiny_hiera_abswin": _cfg(input_size=(3, 32, 64)),
        "tiny_hieradet": _sam_cfg(input_size=(3, 64, 96)),
    }
)

SMALL: dict[str, Any] = {"embed_dim": 16, "num_heads": 1, "stages": (1, 2, 1)}


@register_model
def tiny_hiera(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Not square: two mask units, attention within them in the first two stages, three stages."""
    sizes = {"img_size": (64, 32), "q_pool": 2, "mask_unit_attn": (True, True, False)}
    return _create_hiera("tiny_hiera", pretrained, **{**SMALL, **sizes, **settings})


@register_model
def tiny_hiera_abswin(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Windowed position embeddings, no projection of the residual, and a last stage that widens without pooling."""
    sizes = {"img_size": (32, 64), "q_pool": 1, "mask_unit_attn": (True, True, False), "use_expand_proj": True}
    embeddings = {"abs_win_pos_embed": True, "global_pos_size": (4, 4), "init_values": 0.1}
    return _create_hiera("tiny_hiera_abswin", pretrained, **{**SMALL, **sizes, **embeddings, **settings})


@register_model
def tiny_hieradet(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Windows that do not fill their maps, global attention in one block, pooling within windows."""
    windows = {"window_spec": (8, 4, 6), "global_att_blocks": (2,), "global_pos_size": (7, 7), "q_pool": 2}
    return _create_hiera_det("tiny_hieradet", pretrained, **{**SMALL, **windows, **settings})
