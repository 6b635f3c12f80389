"""Tiny Swin Transformers: V1, V2 and V2-CR, with shifted windows, padded windows, odd sides and three stages."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.swin_transformer import _cfg, _create_swin_transformer
from timm.models.swin_transformer_v2 import _create_swin_transformer_v2
from timm.models.swin_transformer_v2_cr import _create_swin_transformer_v2_cr
from torch import nn

MODELS = ["timm:tiny_swin", "timm:tiny_swinv2", "timm:tiny_swinv2_cr", "timm:tiny_swin_padded"]

default_cfgs = generate_default_cfgs(
    {
        "tiny_swin": _cfg(input_size=(3, 32, 32)),
        "tiny_swinv2": _cfg(input_size=(3, 32, 32)),
        "tiny_swinv2_cr": _cfg(input_size=(3, 32, 32)),
        "tiny_swin_padded": _cfg(input_size=(3, 48, 32)),
    }
)

SMALL: dict[str, Any] = {"img_size": 32, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


@register_model
def tiny_swin(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Eight by eight patches in windows of four, in the second block shifted; then four by four in one window."""
    return _create_swin_transformer("tiny_swin", pretrained, **{**SMALL, **settings})


@register_model
def tiny_swinv2(pretrained: bool = False, **settings: Any) -> nn.Module:
    """The same with cosine attention and norms after attention and MLP."""
    return _create_swin_transformer_v2("tiny_swinv2", pretrained, **{**SMALL, **settings})


@register_model
def tiny_swinv2_cr(pretrained: bool = False, **settings: Any) -> nn.Module:
    """The same with a norm at the end of stages in place of the model's final norm."""
    arguments = {**SMALL, "init_values": 0.1, "extra_norm_stage": True, **settings}
    return _create_swin_transformer_v2_cr("tiny_swinv2_cr", pretrained, **arguments)


@register_model
def tiny_swin_padded(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Not square: 12 by 8 patches, which windows of 5 do not fill, in three stages."""
    sizes = {"img_size": (48, 32), "depths": (2, 3, 1), "num_heads": (2, 4, 8), "window_size": 5}
    return _create_swin_transformer("tiny_swin_padded", pretrained, **{**SMALL, **sizes, **settings})
