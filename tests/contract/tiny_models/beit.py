"""BEiTs: position biases of each block or shared, absolute positions, class token or average, with and without bias."""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from timm.models.beit import Beit, _create_beit

TINY = {"img_size": (32, 24), "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2}


def _create(name: str, pretrained: bool, defaults: dict[str, Any], given: dict[str, Any]) -> Beit:
    return _create_beit(name, pretrained=pretrained, **{**TINY, **defaults, **given})


@register_model
def test_beit(pretrained: bool = False, **kwargs: Any) -> Beit:
    """Build a BEiT as published: position biases of each block, LayerScale, average of the patches."""
    defaults = {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.1}
    return _create("test_beit", pretrained, defaults, kwargs)


@register_model
def test_beit2(pretrained: bool = False, **kwargs: Any) -> Beit:
    """Build a BEiT with a shared position bias, absolute positions, the class token as output, and no qkv bias."""
    defaults = {"use_shared_rel_pos_bias": True, "global_pool": "token", "qkv_bias": False}
    return _create("test_beit2", pretrained, defaults, kwargs)


MODELS = ["timm:test_beit", "timm:test_beit2"]
