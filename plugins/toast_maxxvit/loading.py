"""Construction of backbones from timm's MaxViT, CoAtNet and MaxxViT."""

from __future__ import annotations

from typing import Any

from timm.models.maxxvit import MaxxVit

from toast_maxxvit.backbone import MaxxVitBackbone
from toast_timm.any_model import set_timm_origin
from toast_timm.loading import get_preprocessing


def wrap_maxxvit(module: Any) -> MaxxVitBackbone | None:
    """Return the backbone of a timm MaxxVit, or None for any other module.

    Raises:
        UsageError: The model does not read RGB images.
        ToastError: The model cannot be steered.
    """
    if not isinstance(module, MaxxVit):
        return None
    backbone = MaxxVitBackbone(module, get_preprocessing(module, tuple(module.img_size)))
    set_timm_origin(backbone, module)
    return backbone
