"""CaiTs: talking heads and a class-attention stage; average pooling, and images that are not square."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.cait import Cait, _create_cait

TINY = {"img_size": 64, "embed_dim": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 2.0, "init_values": 0.5}
CONFIG = {"input_size": (3, 64, 64), "num_classes": 10, "classifier": "head", "first_conv": "patch_embed.proj"}
NAMES = ("test_cait", "test_cait_avg")
default_cfgs = generate_default_cfgs(dict.fromkeys(NAMES, CONFIG))


@register_model
def test_cait(pretrained: bool = False, **kwargs: Any) -> Cait:
    return _create_cait("test_cait", pretrained, **{**TINY, **kwargs})


@register_model
def test_cait_avg(pretrained: bool = False, **kwargs: Any) -> Cait:
    arguments = {**TINY, "img_size": (64, 48), "global_pool": "avg", "qkv_bias": False, **kwargs}
    return _create_cait("test_cait_avg", pretrained, **arguments)


MODELS = [f"timm:{name}" for name in NAMES]
