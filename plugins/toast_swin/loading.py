"""Wrapping of timm's Swin Transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch

from toast_swin.backbone import SWIN_CLASSES, SwinBackbone
from toast_timm.any_model import make_wrap
from toast_timm.image_size import get_filled_image_size

_wrap = make_wrap(SwinBackbone, SWIN_CLASSES, get_filled_image_size)


def wrap_swin(module: Any) -> SwinBackbone | None:
    """Return the backbone of a timm Swin, SwinV2 or SwinV2-CR, or None for any other module.

    Raises:
        UsageError: The model does not read RGB images, or its patches do not fill its image size.
        ToastError: The model cannot be steered.
    """
    backbone = _wrap(module)
    if backbone is not None and backbone.origin is not None and not has_windows_of_origin(backbone):
        backbone.origin = None
    return backbone


def has_windows_of_origin(backbone: SwinBackbone) -> bool:
    """Return whether the model, built again by its name and image size, has the same windows.

    `set_input_size` scales windows with the image, and a user may choose others. SwinV2's weights do not show it.
    """
    assert backbone.origin is not None
    size = backbone.require_preprocessing().image_size
    with torch.device("meta"):
        again: Any = timm.create_model(backbone.origin["name"].partition(":")[2], num_classes=0, img_size=size)
    return _list_windows(backbone.module) == _list_windows(again)


def _list_windows(module: Any) -> Sequence[tuple[Any, Any]]:
    return [
        (tuple(part.window_size), tuple(part.shift_size)) for part in module.modules() if hasattr(part, "shift_size")
    ]
