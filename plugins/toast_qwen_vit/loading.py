"""Construction of backbones from timm's vision towers of Qwen3-VL and Qwen3.5."""

from __future__ import annotations

from typing import Any

from timm.models.qwen3_vit import Qwen3VitClassifier, Qwen3VitEncoder

from toast_qwen_vit.backbone import QwenVitBackbone
from toast_timm.any_model import set_timm_origin
from toast_timm.loading import get_preprocessing


def wrap_qwen_vit(module: Any) -> QwenVitBackbone | None:
    """Return the backbone of a timm vision tower of Qwen3, or None for any other module.

    Raises:
        ToastError: The model cannot be steered.
        UsageError: The model does not read RGB images.
    """
    if not isinstance(module, Qwen3VitEncoder | Qwen3VitClassifier):
        return None
    encoder = module.encoder if isinstance(module, Qwen3VitClassifier) else module
    backbone = QwenVitBackbone(module, get_preprocessing(module, encoder.patch_embed.img_size))
    set_timm_origin(backbone, module)
    return backbone
