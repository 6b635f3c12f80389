"""Recognition of timm's `Eva` models."""

from __future__ import annotations

from typing import Any

from timm.models.eva import Eva

from toast_cli.plugin import UsageError
from toast_eva.backbone import EvaBackbone
from toast_timm.any_model import set_timm_origin
from toast_timm.loading import get_preprocessing


def wrap_eva(module: Any) -> EvaBackbone | None:
    """Return the backbone of a timm `Eva`, or None for any other module.

    Raises:
        UsageError: The model does not read RGB images, or its patches do not fill its images.
        ToastError: The model cannot be steered.
    """
    if not isinstance(module, Eva):
        return None
    embed: Any = module.patch_embed
    if not embed.dynamic_img_pad:
        _check_image_size(embed.img_size, embed.patch_size)
    backbone = EvaBackbone(module, get_preprocessing(module, embed.img_size))
    set_timm_origin(backbone, module)
    return backbone


def _check_image_size(size: tuple[int, int], patch: tuple[int, int]) -> None:
    """Check that patches fill the images: the rest would be cropped, and maps would not fit."""
    if all(side % cell == 0 for side, cell in zip(size, patch, strict=True)):
        return
    nearest = [max(round(side / cell), 1) * cell for side, cell in zip(size, patch, strict=True)]
    raise UsageError(
        f"Patches of {patch[0]} × {patch[1]} pixels do not fill images of {size[0]} × {size[1]} pixels.",
        what_to_do=f"The nearest image size is {nearest[0]} × {nearest[1]}.",
        code="backbone.wrong-image-size",
    )
