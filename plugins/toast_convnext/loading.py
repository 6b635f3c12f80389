"""A ConvNeXt of timm's as a backbone."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.convnext import ConvNeXt

from toast_cli.plugin import UsageError
from toast_convnext.backbone import ConvNeXtBackbone
from toast_convnext.options import ConvNeXtOptions
from toast_timm.classifier import load_pretrained_classifier
from toast_timm.loading import ModelSource, build_module, get_preprocessing


def wrap_convnext(module: Any) -> ConvNeXtBackbone | None:
    """A timm ConvNeXt that is there already; None for anything else."""
    return ConvNeXtBackbone(module, get_preprocessing(module)) if isinstance(module, ConvNeXt) else None


def build_convnext(model: str, options: ConvNeXtOptions) -> ConvNeXtBackbone:
    """Any timm ConvNeXt (V1 or V2) by its timm name, without its classifier.

    Raises:
        UsageError: timm has no such model, the weights file does not exist, or the image size is below one cell.
        ToastError: the hub cannot be reached, the file holds another model's weights, or the model is no ConvNeXt.
    """
    arguments = {"drop_path_rate": options.drop_path}
    source: ModelSource = {"model": model, "weights": options.weights, "family": "a ConvNeXt", "named": ("convnext*",)}
    module = build_module(arguments=arguments, **source)
    size = options.image_size
    preprocessing = get_preprocessing(module, (size, size) if isinstance(size, int) else size)
    backbone = ConvNeXtBackbone(module, preprocessing)
    backbone.classifier = partial(load_pretrained_classifier, **source)
    if min(preprocessing.image_size) < backbone.stride:
        height, width = preprocessing.image_size
        raise UsageError(
            f"{height} × {width} pixels are too few for '{model}'.",
            f"Its stages divide the image by {backbone.stride}.",
            f"Set backbone.image_size to {backbone.stride} or more.",
            code="backbone.image-too-small",
        )
    return backbone
