"""A ViT of timm's as a backbone."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from toast_cli.plugin import UsageError
from toast_timm.classifier import load_pretrained_classifier
from toast_timm.loading import ModelSource, build_module, get_preprocessing
from toast_vit.backbone import VitBackbone
from toast_vit.options import VitOptions


def check_image_size(module: Any, options: VitOptions) -> None:
    """Refuse an image size that patches do not fill: the rest would be cut off, and no map would fit the image.

    Raises:
        UsageError: a side is not a multiple of the patch.
    """
    wanted = options.image_size
    embed = getattr(module, "patch_embed", None)
    if wanted is None or embed is None or getattr(embed, "dynamic_img_pad", False):
        return
    for side, patch in zip((wanted, wanted) if isinstance(wanted, int) else wanted, embed.patch_size, strict=True):
        if side % patch:
            nearest = max(round(side / patch), 1) * patch
            raise UsageError(
                f"backbone.image_size={side} is not a multiple of the patch of {patch} pixels.",
                what_to_do=f"The nearest that is: {nearest}.",
                code="backbone.wrong-image-size",
            )


def wrap_vit(module: Any) -> VitBackbone | None:
    """A timm ViT that is there already; None for anything else."""
    if not isinstance(module, VisionTransformer):
        return None
    return VitBackbone(module, get_preprocessing(module, getattr(module.patch_embed, "img_size", None)))


def build_vit(model: str, options: VitOptions) -> VitBackbone:
    """Any timm ViT by its timm name, without its classifier.

    Raises:
        UsageError: timm has no such model, or the weights file does not exist.
        ToastError: the hub cannot be reached, the file holds another model's weights, or the model is no ViT.
    """
    arguments: dict[str, Any] = {"drop_path_rate": options.drop_path}
    if options.image_size is not None:
        arguments["img_size"] = options.image_size
    source: ModelSource = {"model": model, "weights": options.weights, "family": "a ViT", "named": ("*vit*", "deit*")}
    module = build_module(arguments=arguments, **source)
    # The size that it was built for, where it is bound to one: embeddings were resized to it.
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    check_image_size(module, options)
    backbone = VitBackbone(module, get_preprocessing(module, size), options.value_bias)
    backbone.classifier = partial(load_pretrained_classifier, **source)
    return backbone
