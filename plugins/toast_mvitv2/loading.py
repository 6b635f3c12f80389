"""Construction of backbones from timm's MViTv2."""

from __future__ import annotations

from typing import Any

from timm.models.mvitv2 import MultiScaleVit

from toast_mvitv2.backbone import MvitBackbone, find_input_size
from toast_timm.any_model import set_timm_origin
from toast_timm.loading import get_preprocessing


def wrap_mvitv2(module: Any) -> MvitBackbone | None:
    """Return the backbone of a timm MViTv2, or None for any other module.

    Raises:
        UsageError: The model does not read RGB images.
        ToastError: The model cannot be steered.
    """
    if not isinstance(module, MultiScaleVit):
        return None
    backbone = MvitBackbone(module, get_preprocessing(module, find_input_size(module)))
    set_timm_origin(backbone, module)
    return backbone
