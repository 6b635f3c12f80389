"""Tiny MViTv2s: widths that change in attention or in the MLP, positions relative and absolute."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._builder import build_model_with_cfg
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg, _cfg
from torch import nn

MODELS = ["timm:tiny_mvitv2", "timm:tiny_mvitv2_wide", "timm:tiny_mvitv2_any"]

default_cfgs = generate_default_cfgs({name.partition(":")[2]: _cfg(input_size=(3, 32, 32)) for name in MODELS})

SMALL: dict[str, Any] = {
    "depths": (1, 2, 1),
    "embed_dim": (16, 32, 64),
    "num_heads": (1, 2, 4),
    "stride_q": ((1, 1), (2, 2), (2, 2)),
}


def build(name: str, pretrained: bool, config: dict[str, Any], settings: dict[str, Any]) -> nn.Module:
    arguments = {"img_size": 32, **settings}
    config = {**SMALL, **config}
    return build_model_with_cfg(MultiScaleVit, name, pretrained, model_cfg=MultiScaleVitCfg(**config), **arguments)


@register_model
def tiny_mvitv2(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Keys and values pooled by four in the first stage."""
    return build("tiny_mvitv2", pretrained, {}, settings)


@register_model
def tiny_mvitv2_wide(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Widths grow in the MLP that ends a stage, pooling takes maxima."""
    return build("tiny_mvitv2_wide", pretrained, {"expand_attn": False, "mode": "max"}, settings)


@register_model
def tiny_mvitv2_any(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Absolute positions, one projection for all heads' pooling, no residual queries."""
    config = {"rel_pos_type": "none", "use_abs_pos": True, "residual_pooling": False}
    return build("tiny_mvitv2_any", pretrained, config, settings)
