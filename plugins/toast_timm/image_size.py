"""Check of the image size that a user sets against the patches of a transformer."""

from __future__ import annotations

from typing import Any

from toast_cli.plugin import UsageError
from toast_timm.options import TimmOptions


def check_image_size(module: Any, options: TimmOptions) -> None:
    """Check that the image size is a multiple of the patch size: the rest would be cropped, and maps would not fit.

    Convolutional stems that pad their input, and patch embeddings that do, take any size.

    Raises:
        UsageError: A side is not a multiple of the patch size.
    """
    embed: Any = getattr(module, "patch_embed", None) or getattr(module, "embeds", None)
    if options.image_shape is None or not hasattr(embed, "patch_size") or not hasattr(embed, "feat_ratio"):
        return
    if getattr(embed, "dynamic_img_pad", False) or max(embed.patch_size) == 1:
        return
    for side, patch in zip(options.image_shape, embed.feat_ratio(as_scalar=False), strict=True):
        if side % patch:
            nearest = max(round(side / patch), 1) * patch
            raise UsageError(
                f"backbone.image_size={side} is not a multiple of the patch size of {patch} pixels.",
                what_to_do=f"The nearest multiple is {nearest}.",
                code="backbone.wrong-image-size",
            )
