"""Construction of backbones from timm's XCiTs."""

from __future__ import annotations

from typing import Any

from timm.models.xcit import Xcit

from toast_timm.any_model import set_timm_origin
from toast_timm.loading import get_preprocessing
from toast_xcit.backbone import XcitBackbone


def wrap_xcit(module: Any) -> XcitBackbone | None:
    """Return the backbone of a timm XCiT, or None for any other module.

    Raises:
        UsageError: The model does not read RGB images.
    """
    if not isinstance(module, Xcit):
        return None
    backbone = XcitBackbone(module, get_preprocessing(module))
    set_timm_origin(backbone, module)
    return backbone
