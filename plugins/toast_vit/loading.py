"""Construction of backbones from timm's ViTs."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from toast_timm.any_model import make_wrap
from toast_timm.classifier import load_pretrained_classifier
from toast_timm.image_size import check_image_size
from toast_timm.loading import ModelSource, build_module, get_preprocessing
from toast_timm.weights_file import describe_normalization
from toast_vit.backbone import VitBackbone
from toast_vit.options import VitOptions

wrap_vit = make_wrap(VitBackbone, VisionTransformer, lambda vit: getattr(vit.patch_embed, "img_size", None), "vit")


def build_vit(model: str, options: VitOptions) -> VitBackbone:
    """Build a timm ViT by its timm name, without its classifier.

    Raises:
        UsageError: timm has no such model, or the weights file does not exist.
        ToastError: The hub cannot be reached, the file has another model's weights, or the model is not a ViT.
    """
    arguments: dict[str, Any] = {"drop_path_rate": options.drop_path}
    if options.image_size is not None:
        arguments["img_size"] = options.image_size
    source: ModelSource = {"model": model, "weights": options.weights, "family": "a ViT", "named": ("*vit*", "deit*")}
    module = build_module(arguments=arguments, **source)
    # The model's own input size, if it has a fixed one: embeddings were resized to it.
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    check_image_size(module, options)
    backbone = VitBackbone(module, get_preprocessing(module, size), options.value_bias)
    backbone.classifier = partial(load_pretrained_classifier, **source)
    backbone.normalization_note = describe_normalization(model, options.weights, backbone.require_preprocessing())
    return backbone
