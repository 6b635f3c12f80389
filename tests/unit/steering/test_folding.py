"""Folding changes nothing: one matrix per level gives what P, the A's, B_l and W_V gave, exactly."""

from __future__ import annotations

import pytest
import torch
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from toast_cli.backbone import Backbone, Preprocessing
from toast_cli.steering.folding import FoldedSteering
from toast_cli.steering.lite import add_low_rank
from toast_cli.steering.steering import Steering, one_pass, two_passes
from toast_convnext.backbone import ConvNeXtBackbone
from toast_llama.backbone import LlamaBackbone
from toast_vit.backbone import VitBackbone

GREY = (0.5, 0.5, 0.5)


def vit(**how: object) -> VitBackbone:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 0}
    bias = how.pop("value_bias", "once")
    module = VisionTransformer(**shape, **how)
    return VitBackbone(module, Preprocessing((32, 32), GREY, GREY), bias)


def convnext() -> ConvNeXtBackbone:
    module = ConvNeXt(depths=(1, 1, 1, 1), dims=(6, 8, 10, 12), num_classes=0)
    return ConvNeXtBackbone(module, Preprocessing((64, 96), GREY, GREY))


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
    "vit, two attentions a block": lambda: vit(block_fn=ParallelThingsBlock),
    "convnext": convnext,
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


@pytest.mark.parametrize("levels", [None, range(2), range(1, 3)], ids=["full", "early", "middle"])
@pytest.mark.parametrize("name", BACKBONES)
def test_one_matrix_a_level_gives_what_the_feedback_path_gave(name: str, levels: range | None) -> None:
    backbone = randomly(BACKBONES[name]())
    steering = Steering(backbone, levels).double()
    for weight in steering.parameters():
        nn.init.normal_(weight, std=0.4)
    path, inputs = FoldedSteering(steering, backbone), example(backbone)
    with torch.no_grad():
        compared = two_passes(backbone, steering, inputs).first.compared.movedim(backbone.channel_dim, -1)
        steering.selection.xi.copy_(compared[0].flatten(0, -2)[-1])  # so that some tokens are surely selected
        before, after = two_passes(backbone, steering, inputs), two_passes(backbone, path, inputs)
        unsteered = one_pass(backbone, inputs)
    assert not torch.allclose(before.last.pooled, unsteered.last.pooled, atol=1e-3)
    assert (before.last.pooled - after.last.pooled).abs().max() < 1e-9
    assert torch.equal(before.similarity, after.similarity)
    assert len(path.F) == len(steering.levels)


def test_low_rank_factors_are_folded_in() -> None:
    backbone = randomly(convnext())
    steering = Steering(backbone).double()
    for factor in add_low_rank(steering.feedback, 2, 3.0):
        nn.init.normal_(factor, std=0.5)
    steering.double()
    inputs = example(backbone)
    with torch.no_grad():
        before = two_passes(backbone, steering, inputs)
        after = two_passes(backbone, FoldedSteering(steering, backbone), inputs)
    assert (before.last.pooled - after.last.pooled).abs().max() < 1e-9
