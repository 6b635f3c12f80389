"""Tiny torchvision models, registered with torchvision."""

from __future__ import annotations

from typing import Any

from torchvision import models
from torchvision.models._api import register_model
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2


@register_model()
def toast_tiny_vit(image_size: int = 32, **settings: Any) -> models.VisionTransformer:
    shape = {"patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return models.VisionTransformer(image_size, **{**shape, **settings})


@register_model()
def toast_tiny_vit_with_representation(**settings: Any) -> models.VisionTransformer:
    return toast_tiny_vit(representation_size=12, num_heads=1, **settings)


@register_model()
def toast_tiny_resnet(**settings: Any) -> models.ResNet:
    return models.ResNet(BasicBlock, [1, 1, 1, 1], **settings)


@register_model()
def toast_tiny_convnext(**settings: Any) -> models.ConvNeXt:
    stages = [CNBlockConfig(8, 12, 1), CNBlockConfig(12, 16, 1), CNBlockConfig(16, 20, 1), CNBlockConfig(20, None, 1)]
    return models.ConvNeXt(stages, layer_scale=1.0, **settings)


@register_model()
def toast_tiny_swin(**settings: Any) -> models.SwinTransformer:
    """For images of 224 pixels, 16 by 16 patches, which windows of 5 do not fill, then 8 by 8, then 4 by 4."""
    shape = {"patch_size": [14, 14], "embed_dim": 8, "depths": [2, 2, 1], "num_heads": [1, 2, 4], "window_size": [5, 5]}
    return models.SwinTransformer(**{**shape, "stochastic_depth_prob": 0.0, **settings})


@register_model()
def toast_tiny_swin_v2(**settings: Any) -> models.SwinTransformer:
    return toast_tiny_swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2, **settings)


MODELS = [
    "torchvision:toast_tiny_vit",
    "torchvision:toast_tiny_vit_with_representation",
    "torchvision:toast_tiny_convnext",
    "torchvision:toast_tiny_resnet",
    "torchvision:toast_tiny_swin",
    "torchvision:toast_tiny_swin_v2",
]
