"""Small backbones of every family in float64, with weights large enough that every part matters."""

from __future__ import annotations

import torch
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from toast_cli.backbones.base import Backbone, Preprocessing
from toast_convnext.backbone import ConvNeXtBackbone
from toast_llama.backbone import LlamaBackbone
from toast_swin.backbone import SwinBackbone
from toast_vit.backbone import VitBackbone

GREY = (0.5, 0.5, 0.5)


def vit(**how: object) -> VitBackbone:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 0}
    bias = how.pop("value_bias", "once")
    module = VisionTransformer(**shape, **how)
    return VitBackbone(module, Preprocessing((32, 32), GREY, GREY), bias)


def distilled() -> VitBackbone:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 0}
    return VitBackbone(VisionTransformerDistilled(**shape), Preprocessing((32, 32), GREY, GREY))


def convnext() -> ConvNeXtBackbone:
    module = ConvNeXt(depths=(1, 1, 1, 1), dims=(6, 8, 10, 12), num_classes=0)
    return ConvNeXtBackbone(module, Preprocessing((64, 96), GREY, GREY))


def swin() -> SwinBackbone:
    module = SwinTransformer(
        img_size=(32, 48), embed_dim=12, depths=(2, 2, 1), num_heads=(2, 4, 8), window_size=4, num_classes=0
    )
    return SwinBackbone(module, Preprocessing((32, 48), GREY, GREY))


def llama() -> LlamaBackbone:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaBackbone(LlamaForCausalLM(config))


BACKBONES = {
    "vit": vit,
    "vit, bias twice": lambda: vit(value_bias="twice"),
    "vit, normed queries, keys and values": lambda: vit(qk_norm=True, scale_attn_norm=True),
    "vit, two attentions a block": lambda: vit(block_fn=ParallelThingsBlock),
    "vit, distilled, which pools two tokens": distilled,
    "convnext": convnext,
    "swin": swin,
    "llama": llama,
}


def randomly(backbone: Backbone) -> Backbone:
    """In float64, with weights large enough that every part matters."""
    torch.manual_seed(0)
    backbone.module.double().eval().requires_grad_(False)
    for weight in backbone.module.parameters():
        nn.init.normal_(weight, std=0.3)
    return backbone


def example(backbone: Backbone) -> object:
    inputs = backbone.example(2)
    return inputs.double() if isinstance(inputs, torch.Tensor) else inputs
