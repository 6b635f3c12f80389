"""Tiny MaxViTs, CoAtNets and MaxxViTs: every kind of block, layout and pooling."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._builder import build_model_with_cfg
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg, _cfg
from torch import nn

MODELS = [
    "timm:tiny_coatnet",
    "timm:tiny_maxvit",
    "timm:tiny_maxxvit",
    "timm:tiny_maxvit_parallel",
    "timm:tiny_maxvit_nchw",
    "timm:tiny_coatnet_max",
]

default_cfgs = generate_default_cfgs(
    {
        "tiny_coatnet": _cfg(input_size=(3, 32, 48)),
        "tiny_coatnet_max": _cfg(input_size=(3, 32, 32)),
        "tiny_maxvit": _cfg(input_size=(3, 32, 32)),
        "tiny_maxvit_nchw": _cfg(input_size=(3, 32, 32)),
        "tiny_maxvit_parallel": _cfg(input_size=(3, 32, 32)),
        "tiny_maxxvit": _cfg(input_size=(3, 32, 64)),
    }
)


def build(
    name: str,
    pretrained: bool,
    blocks: tuple[Any, ...],
    settings: dict[str, Any],
    conv: dict[str, Any] | None = None,
    transformer: dict[str, Any] | None = None,
    **config: Any,
) -> nn.Module:
    common = {"dim_head": 8, "rel_pos_type": "bias", "partition_ratio": 8}
    cfg = MaxxVitCfg(
        embed_dim=(16, 32),
        depths=(1, 2),
        block_type=blocks,
        stem_width=(8, 16),
        conv_cfg=MaxxVitConvCfg(expand_ratio=2, **conv or {}),
        transformer_cfg=MaxxVitTransformerCfg(expand_ratio=2, **{**common, **(transformer or {})}),
        **config,
    )
    height, width = default_cfgs[name].default.input_size[1:]
    return build_model_with_cfg(MaxxVit, name, pretrained, model_cfg=cfg, **{"img_size": (height, width), **settings})


@register_model
def tiny_coatnet(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Convolutional, then attention over maps of 4 by 6 cells; the head pools before its norm."""
    return build("tiny_coatnet", pretrained, ("C", "T"), settings, head_hidden_size=20)


@register_model
def tiny_coatnet_max(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Pooled by overlapping maxima; values widened in the projection after attention."""
    how = {"pool_type": "max", "expand_first": False}
    return build("tiny_coatnet_max", pretrained, ("C", "T"), settings, {"pool_type": "max"}, how)


@register_model
def tiny_maxvit(pretrained: bool = False, **settings: Any) -> nn.Module:
    """MBConv, windows and grid in channels last; q, k, v together."""
    return build("tiny_maxvit", pretrained, ("M", "M"), settings, None, {"head_first": False})


@register_model
def tiny_maxvit_nchw(pretrained: bool = False, **settings: Any) -> nn.Module:
    """The same in channels first, q, k, v by head."""
    return build("tiny_maxvit_nchw", pretrained, ("M", "M"), settings, None, {"use_nchw_attn": True})


@register_model
def tiny_maxvit_parallel(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Windows and grid at once."""
    return build("tiny_maxvit_parallel", pretrained, ("PM", "PM"), settings)


@register_model
def tiny_maxxvit(pretrained: bool = False, **settings: Any) -> nn.Module:
    """ConvNeXt blocks and grid attention alone, not square."""
    conv = {"block_type": "convnext", "init_values": 0.1, "expand_output": False}
    return build("tiny_maxxvit", pretrained, ("M", "M"), settings, conv, {"no_block_attn": True})
