"""Construction of backbones from timm's Hiera and HieraDet."""

from __future__ import annotations

from typing import Any

from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet

from toast_cli.plugin import Backbone
from toast_hiera.backbone import HieraBackbone
from toast_hiera.hieradet import HieraDetBackbone
from toast_timm.any_model import set_timm_origin
from toast_timm.loading import get_preprocessing


def wrap_hiera(module: Any) -> Backbone | None:
    """Return the backbone of a timm Hiera or HieraDet, or None for any other module.

    Raises:
        UsageError: The model does not read RGB images.
        ToastError: The model cannot be steered.
    """
    backbone: Backbone
    if isinstance(module, Hiera):
        *_, height, width = module.tokens_spatial_shape
        *_, rows, columns = module.patch_stride
        backbone = HieraBackbone(module, get_preprocessing(module, (height * rows, width * columns)))
    elif isinstance(module, HieraDet):
        backbone = HieraDetBackbone(module, get_preprocessing(module))
    else:
        return None
    set_timm_origin(backbone, module)
    return backbone
