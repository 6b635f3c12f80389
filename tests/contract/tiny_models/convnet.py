"""Tiny networks with stages that differ in how timm's code passes maps from stage to stage."""

from __future__ import annotations

from typing import Any

from timm.layers import BatchNormAct2d, create_conv2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.densenet import DenseNet
from timm.models.dpn import DPN
from timm.models.levit import Levit
from timm.models.resnet import BasicBlock, ResNet
from timm.models.resnetv2 import ResNetV2
from torch import nn

MODELS = [
    "timm:toast_tiny_resnet",
    "timm:toast_tiny_resnetv2",  # a norm after the last stage
    "timm:toast_tiny_densenet",
    "timm:toast_tiny_dpn",  # two maps between stages, concatenated
    "timm:toast_tiny_levit",  # tokens between stages, images of one size
    "timm:test_efficientnet",  # a convolution after the last stage
    "timm:test_byobnet",
    "timm:test_nfnet",
    "timm:test_mambaout",  # maps with the channels last
]


SIZE = {"num_classes": 0, "input_size": (3, 64, 64), "first_conv": "", "classifier": ""}
default_cfgs = generate_default_cfgs(
    {
        "toast_tiny_resnet": SIZE,
        "toast_tiny_resnetv2": SIZE,
        "toast_tiny_densenet": SIZE,
        "toast_tiny_dpn": SIZE,
        "toast_tiny_levit": {**SIZE, "fixed_input_size": True},
    }
)


@register_model
def toast_tiny_resnet(pretrained: bool = False, **arguments: Any) -> nn.Module:
    sizes = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48), "stem_width": 8}
    return build_model_with_cfg(ResNet, "toast_tiny_resnet", pretrained, **{**sizes, **arguments})


@register_model
def toast_tiny_resnetv2(pretrained: bool = False, **arguments: Any) -> nn.Module:
    sizes = {
        "layers": (1, 1, 1, 1),
        "channels": (16, 24, 32, 48),
        "stem_chs": 8,
        "norm_layer": BatchNormAct2d,
        "conv_layer": create_conv2d,
    }
    return build_model_with_cfg(ResNetV2, "toast_tiny_resnetv2", pretrained, **{**sizes, **arguments})


@register_model
def toast_tiny_densenet(pretrained: bool = False, **arguments: Any) -> nn.Module:
    sizes = {"growth_rate": 8, "block_config": (2, 2, 2, 2)}
    return build_model_with_cfg(DenseNet, "toast_tiny_densenet", pretrained, **{**sizes, **arguments})


@register_model
def toast_tiny_dpn(pretrained: bool = False, **arguments: Any) -> nn.Module:
    sizes = {"k_sec": (1, 1, 1, 1), "inc_sec": (4, 8, 8, 8), "k_r": 16, "groups": 2, "num_init_features": 8}
    return build_model_with_cfg(DPN, "toast_tiny_dpn", pretrained, **{"small": True, **sizes, **arguments})


@register_model
def toast_tiny_levit(pretrained: bool = False, **arguments: Any) -> nn.Module:
    sizes = {"img_size": 64, "embed_dim": (16, 24, 32), "key_dim": 8, "depth": (1, 1, 1), "num_heads": (2, 3, 4)}
    return build_model_with_cfg(Levit, "toast_tiny_levit", pretrained, **{"use_conv": False, **sizes, **arguments})
