"""Construction of backbones from timm's ConvNeXts."""

from __future__ import annotations

from functools import partial

from timm.models.convnext import ConvNeXt

from toast_cli.plugin import UsageError
from toast_convnext.backbone import ConvNeXtBackbone
from toast_timm.any_model import make_wrap
from toast_timm.classifier import load_pretrained_classifier
from toast_timm.loading import ModelSource, build_module, get_preprocessing
from toast_timm.options import TimmOptions
from toast_timm.weights_file import describe_normalization

wrap_convnext = make_wrap(ConvNeXtBackbone, ConvNeXt, prefix="convnext")


def build_convnext(model: str, options: TimmOptions) -> ConvNeXtBackbone:
    """Build a timm ConvNeXt (V1 or V2) by its timm name, without its classifier.

    Raises:
        UsageError: timm has no such model, the weights file does not exist, or the image size is too small.
        ToastError: The hub cannot be reached, the file has another model's weights, or the model is not a ConvNeXt.
    """
    arguments = {"drop_path_rate": options.drop_path}
    source: ModelSource = {"model": model, "weights": options.weights, "family": "a ConvNeXt", "named": ("convnext*",)}
    module = build_module(arguments=arguments, **source)
    preprocessing = get_preprocessing(module, options.image_shape)
    backbone = ConvNeXtBackbone(module, preprocessing)
    backbone.classifier = partial(load_pretrained_classifier, **source)
    backbone.normalization_note = describe_normalization(model, options.weights, preprocessing)
    if min(preprocessing.image_size) < backbone.stride:
        height, width = preprocessing.image_size
        raise UsageError(
            f"An image size of {height} × {width} pixels is too small for '{model}'.",
            f"Its stages divide the image by {backbone.stride}.",
            f"Set backbone.image_size to {backbone.stride} or more.",
            code="backbone.image-too-small",
        )
    return backbone
