"""LeViTs of linear layers and of convolutions, with two and three stages."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._builder import build_model_with_cfg
from timm.models.levit import Levit, LevitDistilled
from torch import nn

TINY = {
    **{"img_size": 64, "stem_type": "s8", "embed_dim": (16, 24, 32), "key_dim": 8},
    **{"num_heads": (2, 3, 4), "depth": (1, 2, 1)},
}
CONFIG = {"input_size": (3, 64, 64), "num_classes": 10, "classifier": ("head.linear", "head_dist.linear")}
NAMES = ("test_levit", "test_levit_conv")
default_cfgs = generate_default_cfgs(dict.fromkeys(NAMES, CONFIG))


def build(name: str, pretrained: bool, **kwargs: Any) -> Levit:
    model = build_model_with_cfg(LevitDistilled, name, pretrained, **{**TINY, **kwargs})
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(part.weight)  # timm's initial blocks do nothing: the norms after their attention scale by 0
    return model


@register_model
def test_levit(pretrained: bool = False, **kwargs: Any) -> Levit:
    return build("test_levit", pretrained, **kwargs)


@register_model
def test_levit_conv(pretrained: bool = False, **kwargs: Any) -> Levit:
    return build("test_levit_conv", pretrained, **{"use_conv": True, "img_size": (32, 64), **kwargs})


MODELS = [f"timm:{name}" for name in NAMES]
