"""UperNet on the features of any vision backbone: transformers' head, fed by a pyramid of the backbone's levels.

UperNet: Xiao et al., Unified Perceptual Parsing for Scene Understanding, ECCV 2018. The pyramid is the simple one of
plain vision transformers (Li et al., Exploring Plain Vision Transformer Backbones for Object Detection, ECCV 2022,
section 3), each of its scales made from a level of its own, as where UperNet is put on ViTs.
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
"""How much finer or coarser than the patches each map of the pyramid is, finest first."""

NORM_GROUPS = 32
MIN_GROUP_CHANNELS = 16
"""Pooling leaves maps of a single cell, where a group of one channel would be normalised to nothing."""


@dataclass
class FeatureMaps:
    """A backbone's levels as maps `[B, C, h, w]`, earliest first, and the (height, width) of the images."""

    maps: list[Tensor]
    size: tuple[int, int]


def select_pyramid_levels(backbone: Backbone) -> list[int]:
    """The levels that are looked at, from 0: every stage of a ConvNet, four of a transformer, evenly spaced."""
    count = len(backbone.levels)
    if backbone.channel_dim == 1:
        return list(range(count))
    return [-(-count * part // len(PYRAMID_SCALES)) - 1 for part in range(1, len(PYRAMID_SCALES) + 1)]


def extract_feature_maps(backbone: Backbone, readout: Readout, levels: Sequence[Tensor], inputs: Tensor) -> FeatureMaps:
    """What the chosen levels put out, laid out over the image; tokens without a place in it are left out.

    The last level's is taken after the model's final norm, as the model itself would use it.
    """
    last = len(backbone.levels) - 1
    chosen = [readout.compared if index == last else levels[index] for index in select_pyramid_levels(backbone)]
    if backbone.channel_dim != 1:
        grid = backbone.grid(inputs)
        chosen = [tokens[:, backbone.prefix_tokens :].movedim(1, -1).unflatten(-1, grid) for tokens in chosen]
    height, width = inputs.shape[-2:]
    return FeatureMaps(chosen, (height, width))


def build_rescale_layer(width: int, scale: float) -> nn.Module:
    """The layer that makes a map of `width` channels `scale` times as fine."""
    if scale == 4:
        up = nn.ConvTranspose2d(width, width, 2, 2)
        return nn.Sequential(up, _build_group_norm(width), nn.GELU(), nn.ConvTranspose2d(width, width, 2, 2))
    if scale == 2:
        return nn.ConvTranspose2d(width, width, 2, 2)
    return nn.Identity() if scale == 1 else nn.MaxPool2d(2, 2, ceil_mode=True)


class SegmentationHead(nn.Module):
    """From a backbone's levels to a score per class and pixel.

    Two departures from the original: UperNet normalises by groups of channels and not over the batch, so that what is
    learned does not depend on how a batch is shared out, accumulated, or whether it is of one image; scores come out at
    the image's own size.

    Args:
        backbone: whose levels are looked at. Tokens go through the pyramid, the stages of a ConvNet as they are.
        classes: how many.
        width: channels inside the head.
        auxiliary: whether a second, plain head scores the third map while training, as UperNet is usually trained.
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
        """Logits `[B, classes, H, W]`; in training those of the auxiliary head behind them: `[B, 2 classes, H, W]`."""
        maps = [layer(map) for layer, map in zip(self.pyramid, features.maps, strict=True)]
        logits = upsample_logits(self.upernet(maps), features.size)
        if self.auxiliary is None or not self.training:
            return logits
        return torch.cat([logits, upsample_logits(self.auxiliary(maps), features.size)], dim=1)


def upsample_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores `[B, C, h, w]` for every pixel of an image of `size`, interpolated between those of their neighbours."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _build_group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(gcd(NORM_GROUPS, channels, max(channels // MIN_GROUP_CHANNELS, 1)), channels)
