"""Tiny PVTv2s: keys and values reduced by convolution, by pooling, and not at all."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.pvt_v2 import _cfg, _create_pvt2
from torch import nn

MODELS = ["timm:tiny_pvt", "timm:tiny_pvt_linear"]

default_cfgs = generate_default_cfgs(
    {"tiny_pvt": _cfg(input_size=(3, 32, 64)), "tiny_pvt_linear": _cfg(input_size=(3, 32, 32))}
)

SMALL: dict[str, Any] = {
    "depths": (1, 2, 2),
    "embed_dims": (16, 24, 32),
    "num_heads": (1, 2, 4),
    "sr_ratios": (4, 2, 1),
    "mlp_ratios": (2, 2, 2),
}


@register_model
def tiny_pvt(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Not square: maps of 8 by 16, 4 by 8 and 2 by 4 cells."""
    return _create_pvt2("tiny_pvt", pretrained, **{**SMALL, **settings})


@register_model
def tiny_pvt_linear(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Keys and values of a pooled map."""
    return _create_pvt2("tiny_pvt_linear", pretrained, **{**SMALL, "linear": True, **settings})
