"""Construction of backbones from timm's Hiera and HieraDet."""

from __future__ import annotations

from typing import Any

from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet

from toast_cli.plugin import Backbone
from toast_hiera.backbone import HieraBackbone
from toast_hiera.hieradet import HieraDetBackbone
from toast_timm.any_model import make_wrap


def _find_input_size(module: Hiera) -> tuple[int, int]:
    """Return the image size (height, width) that the position embeddings were built for, also of a model of videos."""
    *_, height, width = module.tokens_spatial_shape
    *_, rows, columns = module.patch_stride
    return height * rows, width * columns


_wrap_hiera = make_wrap(HieraBackbone, Hiera, _find_input_size)
_wrap_hieradet = make_wrap(HieraDetBackbone, HieraDet)


def wrap_hiera(module: Any) -> Backbone | None:
    """Return the backbone of a timm Hiera or HieraDet, or None for any other module.

    Raises:
        UsageError: The model does not read RGB images.
        ToastError: The model cannot be steered.
    """
    return _wrap_hiera(module) or _wrap_hieradet(module)
