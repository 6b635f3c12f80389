"""XCiTs: attention over channels, with both ways of norming in the class-attention stage."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._builder import build_model_with_cfg
from timm.models.xcit import Xcit

TINY = {"patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0, "eta": 1.0}
CONFIG = {"input_size": (3, 64, 64), "num_classes": 10, "classifier": "head", "first_conv": "patch_embed.proj.0.0"}
NAMES = ("test_xcit", "test_xcit_p8")
default_cfgs = generate_default_cfgs(dict.fromkeys(NAMES, CONFIG))


@register_model
def test_xcit(pretrained: bool = False, **kwargs: Any) -> Xcit:
    arguments = {"tokens_norm": True, **TINY, **kwargs}
    return build_model_with_cfg(Xcit, "test_xcit", pretrained, **arguments)


@register_model
def test_xcit_p8(pretrained: bool = False, **kwargs: Any) -> Xcit:
    arguments = {**TINY, "patch_size": 8, "global_pool": "avg", "use_pos_embed": False}
    return build_model_with_cfg(Xcit, "test_xcit_p8", pretrained, **{**arguments, **kwargs})


MODELS = [f"timm:{name}" for name in NAMES]
