"""A ViT of timm's as a backbone."""

from __future__ import annotations

from typing import Any

from toast_timm.loading import build_module, preprocessing_of
from toast_vit.backbone import VitBackbone
from toast_vit.cards import VitOptions


def build_timm(model: str, options: VitOptions) -> VitBackbone:
    """Any timm ViT by its timm name, without its classifier.

    Raises:
        UsageError: timm has no such model, or the weights file does not exist.
        ToastError: the hub cannot be reached, the file holds another model's weights, or the model is no ViT.
    """
    arguments: dict[str, Any] = {"drop_path_rate": options.drop_path}
    if options.image_size is not None:
        arguments["img_size"] = options.image_size
    module = build_module(model, options.weights, arguments, "a ViT", ("*vit*", "deit*"))
    # The size that it was built for, where it is bound to one: embeddings were resized to it.
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    return VitBackbone(module, preprocessing_of(module, size), options.value_bias)
