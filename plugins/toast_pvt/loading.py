"""Construction of backbones from timm's PVTv2."""

from __future__ import annotations

from typing import Any

from timm.models.pvt_v2 import PyramidVisionTransformerV2

from toast_pvt.backbone import PvtBackbone
from toast_timm.any_model import set_timm_origin
from toast_timm.loading import get_preprocessing


def wrap_pvt(module: Any) -> PvtBackbone | None:
    """Return the backbone of a timm PVTv2, or None for any other module.

    Raises:
        UsageError: The model does not read RGB images.
        ToastError: The model cannot be steered.
    """
    if not isinstance(module, PyramidVisionTransformerV2):
        return None
    backbone = PvtBackbone(module, get_preprocessing(module))
    set_timm_origin(backbone, module)
    return backbone
