"""UperNet on the features of any vision backbone, with the head of transformers.

UperNet: Xiao et al., Unified Perceptual Parsing for Scene Understanding, ECCV 2018. Plain transformers use the simple
feature pyramid of Li et al., Exploring Plain Vision Transformer Backbones for Object Detection, ECCV 2022, section 3,
with each scale made from a level of its own, as is usual for UperNet on ViTs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetConvModule, UperNetFCNHead, UperNetHead

from toast_cli.backbones.base import Backbone, Readout

PYRAMID_SCALES = (4.0, 2.0, 1.0, 0.5)
"""Scale of each map of the pyramid relative to the patches, finest first."""

NORM_GROUPS = 32
MIN_GROUP_CHANNELS = 16
"""Minimum channels per group. Pooled maps have a single cell, and normalizing one value gives zero."""


@dataclass
class FeatureMaps:
    """The levels of a backbone as maps `[B, C, h, w]`, first level first, and the (height, width) of the images."""

    maps: list[Tensor]
    size: tuple[int, int]


def select_pyramid_levels(backbone: Backbone) -> list[int]:
    """Return the levels of the pyramid, from 0: the end of every stage of maps, four evenly spaced ones of tokens.

    A stage begins with a level that changes the size or the width of its input.
    """
    count = len(backbone.levels)
    if backbone.channel_dim == 1:
        begins = [level.stride > 1 or level.width_in != level.width_out for level in backbone.levels]
        return [index for index in range(count) if index + 1 == count or begins[index + 1]]
    return [-(-count * part // len(PYRAMID_SCALES)) - 1 for part in range(1, len(PYRAMID_SCALES) + 1)]


def extract_feature_maps(backbone: Backbone, readout: Readout, levels: Sequence[Tensor], inputs: Tensor) -> FeatureMaps:
    """Return the outputs of the pyramid's levels as maps, without prefix tokens.

    The last level is taken after the model's final norm, as the model itself uses it.
    """
    last = len(backbone.levels) - 1
    chosen = [readout.compared if index == last else levels[index] for index in select_pyramid_levels(backbone)]
    if backbone.channel_dim != 1:
        grid = backbone.grid(inputs)
        chosen = [tokens[:, backbone.prefix_tokens :].movedim(1, -1).unflatten(-1, grid) for tokens in chosen]
    height, width = inputs.shape[-2:]
    return FeatureMaps(chosen, (height, width))


def build_rescale_layer(width: int, scale: float) -> nn.Module:
    """Build the layer that scales the resolution of a map with `width` channels by `scale`."""
    if scale == 4:
        up = nn.ConvTranspose2d(width, width, 2, 2)
        return nn.Sequential(up, _build_group_norm(width), nn.GELU(), nn.ConvTranspose2d(width, width, 2, 2))
    if scale == 2:
        return nn.ConvTranspose2d(width, width, 2, 2)
    return nn.Identity() if scale == 1 else nn.MaxPool2d(2, 2, ceil_mode=True)


class SegmentationHead(nn.Module):
    """Class scores for every pixel, from the levels of a backbone.

    It departs from the original UperNet in two ways. It uses group norm instead of batch norm, so that training does
    not depend on how a batch is split, accumulated, or whether it has a single image. The scores have the size of the
    image.

    Args:
        backbone: The backbone. Tokens go through the pyramid, the stages of maps are used as they are.
        classes: Number of classes.
        width: Channels inside the head.
        auxiliary: Whether a second, simpler head on the third map is trained, as is usual for UperNet.
    """

    def __init__(self, backbone: Backbone, classes: int, width: int, auxiliary: bool) -> None:
        super().__init__()
        widths = [backbone.levels[index].width_out for index in select_pyramid_levels(backbone)]
        plain = backbone.channel_dim != 1
        self.pyramid = nn.ModuleList(
            build_rescale_layer(channels, scale) if plain else nn.Identity()
            for channels, scale in zip(widths, PYRAMID_SCALES if plain else [1.0] * len(widths), strict=True)
        )
        config = UperNetConfig(hidden_size=width, auxiliary_channels=width // 2)
        config.num_labels = classes
        self.upernet = UperNetHead(config, widths)
        third = min(2, len(widths) - 1)
        self.auxiliary = UperNetFCNHead(config, widths, in_index=third) if auxiliary else None
        for part in self.modules():
            if isinstance(part, UperNetConvModule):
                part.batch_norm = _build_group_norm(part.conv.out_channels)  # type: ignore[assignment]

    def forward(self, features: FeatureMaps) -> Tensor:
        """Return logits `[B, classes, H, W]`; in training followed by the auxiliary ones, `[B, 2 classes, H, W]`."""
        maps = [layer(map) for layer, map in zip(self.pyramid, features.maps, strict=True)]
        logits = upsample_logits(self.upernet(maps), features.size)
        if self.auxiliary is None or not self.training:
            return logits
        return torch.cat([logits, upsample_logits(self.auxiliary(maps), features.size)], dim=1)


def upsample_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate scores `[B, C, h, w]` bilinearly to images of `size`."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _build_group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(gcd(NORM_GROUPS, channels, max(channels // MIN_GROUP_CHANNELS, 1)), channels)
