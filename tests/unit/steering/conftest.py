"""A tiny ViT in float64 with random weights, and images for it."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from toast_cli.backbones.base import Preprocessing
from toast_vit.backbone import VitBackbone


@pytest.fixture
def tiny_vit() -> VitBackbone:
    torch.manual_seed(0)
    module = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=0).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return VitBackbone(module.eval().requires_grad_(False), Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3))


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(8, 3, 32, 32, dtype=torch.float64)
