"""Construction of backbones from timm's LeViTs."""

from __future__ import annotations

from typing import Any

from timm.models.levit import Levit

from toast_levit.backbone import LevitBackbone
from toast_timm.any_model import set_timm_origin
from toast_timm.loading import get_preprocessing


def wrap_levit(module: Any) -> LevitBackbone | None:
    """Return the backbone of a timm LeViT, or None for any other module.

    Raises:
        UsageError: The model does not read RGB images.
    """
    if not isinstance(module, Levit):
        return None
    stage: Any = module.stages[0]
    rows, columns = stage.blocks[0].attn.resolution
    stride: Any = module.stem.stride
    backbone = LevitBackbone(module, get_preprocessing(module, (rows * stride, columns * stride)))
    set_timm_origin(backbone, module)
    return backbone
