"""Construction of backbones from timm's vision towers of Gemma 4."""

from __future__ import annotations

from typing import Any

from timm.models.gemma4_vit import Gemma4VitClassifier, Gemma4VitEncoder

from toast_gemma_vit.backbone import GemmaVitBackbone
from toast_timm.any_model import set_timm_origin
from toast_timm.loading import get_preprocessing


def wrap_gemma_vit(module: Any) -> GemmaVitBackbone | None:
    """Return the backbone of a timm vision tower of Gemma 4, or None for any other module.

    Raises:
        UsageError: The model does not read RGB images.
    """
    if not isinstance(module, Gemma4VitEncoder | Gemma4VitClassifier):
        return None
    backbone = GemmaVitBackbone(module, get_preprocessing(module))
    set_timm_origin(backbone, module)
    return backbone
