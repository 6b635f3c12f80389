"""Construction of backbones from timm's vision towers of DeepSeek-V4."""

from __future__ import annotations

from typing import Any

from timm.models.deepseek_vit import DeepseekVitClassifier, DeepseekVitEncoder

from toast_deepseek_vit.backbone import DeepseekVitBackbone
from toast_timm.any_model import set_timm_origin
from toast_timm.loading import get_preprocessing


def wrap_deepseek_vit(module: Any) -> DeepseekVitBackbone | None:
    """Return the backbone of a timm vision tower of DeepSeek, or None for any other module.

    Raises:
        ToastError: The model cannot be steered.
        UsageError: The model does not read RGB images.
    """
    if not isinstance(module, DeepseekVitEncoder | DeepseekVitClassifier):
        return None
    encoder = module.encoder if isinstance(module, DeepseekVitClassifier) else module
    backbone = DeepseekVitBackbone(module, get_preprocessing(module, encoder.patch_embed.img_size))
    set_timm_origin(backbone, module)
    return backbone
