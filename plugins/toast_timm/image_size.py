"""Checks of image sizes against the patches of a transformer: the rest would be cropped, and maps would not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toast_cli.plugin import UsageError
from toast_timm.options import TimmOptions


def check_image_size(module: Any, options: TimmOptions) -> None:
    """Check that the image size that a user sets is a multiple of the patch size.

    Convolutional stems that pad their input, and patch embeddings that do, take any size.

    Raises:
        UsageError: A side is not a multiple of the patch size.
    """
    embed: Any = getattr(module, "patch_embed", None) or getattr(module, "embeds", None)
    if options.image_shape is None or not hasattr(embed, "patch_size") or not hasattr(embed, "feat_ratio"):
        return
    if getattr(embed, "dynamic_img_pad", False) or max(embed.patch_size) == 1:
        return
    _check_sides(options.image_shape, embed.feat_ratio(as_scalar=False), "backbone.image_size=")


def get_filled_image_size(module: Any) -> tuple[int, int]:
    """Return the image size (height, width) that a model was built for, which its patches must fill.

    Raises:
        UsageError: A side is not a multiple of the patch size.
    """
    embed = module.patch_embed
    if not getattr(embed, "dynamic_img_pad", False):
        _check_sides(embed.img_size, embed.patch_size, "An image side of ")
    height, width = embed.img_size
    return height, width


def _check_sides(size: Sequence[int], patches: Sequence[int], name: str) -> None:
    for side, patch in zip(size, patches, strict=True):
        if side % patch:
            raise UsageError(
                f"{name}{side} is not a multiple of the patch size of {patch} pixels.",
                what_to_do=f"The nearest multiple is {max(round(side / patch), 1) * patch}.",
                code="backbone.wrong-image-size",
            )
