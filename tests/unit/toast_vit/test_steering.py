"""Steering a stock ViT is the paper's equation, whatever kind of ViT it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli import registry
from toast_cli.backbones.base import State
from toast_cli.utils.errors import ToastError

KINDS = [
    "vit_demo_3",
    "vit:test_vit",
    "vit:test_vit2",
    "vit:test_vit3",
    "vit:test_vit4",
    # Two attentions side by side in every block.
    pytest.param("vit:vit_small_patch16_18x2_224", marks=pytest.mark.e2e),
]
"""Between them: class token or not, registers, average and map pooling, LayerScale, LayerNorm and RMSNorm."""


class ByHand(nn.Module):
    """`Q = W_Q X, K = W_K X, V = W_V (X + X_td)` (section 3.1, step iv), in place of the fused projection."""

    def __init__(self, qkv: nn.Linear, signal: Tensor) -> None:
        super().__init__()
        self.qkv, self.signal = qkv, signal

    def forward(self, x: Tensor) -> Tensor:
        W_Q, W_K, W_V = self.qkv.weight.chunk(3)
        biases = (None,) * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
        inputs = (x, x, x + self.signal)
        return torch.cat([F.linear(i, W, b) for i, W, b in zip(inputs, (W_Q, W_K, W_V), biases, strict=True)], dim=-1)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_steered_block_is_the_stock_block_with_other_values(name: str) -> None:
    torch.manual_seed(0)
    card = registry.load_backbone_card(name)
    backbone = card.build(card.options(name=name, weights="none"))
    backbone.module.double().eval()
    for parameter in backbone.module.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    state = backbone.enter(backbone.example(2).double())
    signal = torch.randn_like(state.hidden)
    for index in (0, len(backbone.levels) - 1):
        ours = backbone.level(index, State(state.hidden), signal).hidden
        plain = backbone.level(index, State(state.hidden)).hidden
        stock = [attention.qkv for attention in backbone.attentions[index]]
        for attention in backbone.attentions[index]:
            attention.qkv = ByHand(attention.qkv, signal)
        by_hand = backbone.module.blocks[index](state.hidden)
        for attention, qkv in zip(backbone.attentions[index], stock, strict=True):
            attention.qkv = qkv
        assert torch.allclose(ours, by_hand, atol=1e-9, rtol=1e-9)
        assert not torch.allclose(ours, plain, atol=1e-3)


@pytest.mark.parametrize("model", ["vit_pwee_patch16_reg1_gap_256", "vit_dwee_patch16_reg1_gap_256"])
def test_a_vit_that_fuses_its_values_with_something_else_is_refused_by_name(model: str) -> None:
    card = registry.load_backbone_card(f"vit:{model}")
    with pytest.raises(ToastError) as refused:
        card.build(card.options(name=f"vit:{model}", weights="none"))
    assert refused.value.code == "backbone.cannot-steer"


@pytest.mark.parametrize(("size", "nearest"), [(60, 64), ((64, 70), 72)])
def test_an_image_size_that_patches_do_not_fill_is_refused(size: object, nearest: int) -> None:
    card = registry.load_backbone_card("vit_demo_3")
    with pytest.raises(ToastError) as refused:
        card.build(card.options(name="vit_demo_3", image_size=size))
    assert refused.value.code == "backbone.wrong-image-size"
    assert f"{nearest}" in str(refused.value.what_to_do)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        card.options(name="vit_demo_3", image_size=-64)
