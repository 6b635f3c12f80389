"""Construction of backbones from timm's CaiTs."""

from __future__ import annotations

from typing import Any

from timm.models.cait import Cait

from toast_cait.backbone import CaitBackbone
from toast_timm.any_model import set_timm_origin
from toast_timm.loading import get_preprocessing


def wrap_cait(module: Any) -> CaitBackbone | None:
    """Return the backbone of a timm CaiT, or None for any other module.

    Raises:
        ToastError: The model cannot be steered.
        UsageError: The model does not read RGB images.
    """
    if not isinstance(module, Cait):
        return None
    backbone = CaitBackbone(module, get_preprocessing(module, module.patch_embed.img_size))
    set_timm_origin(backbone, module)
    return backbone
