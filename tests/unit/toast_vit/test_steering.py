"""Steering a stock ViT is the paper's equation, whatever kind of ViT it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tests.contract.tiny_models.vit  # noqa: F401  # registers them with timm
from toast_cli import registry
from toast_cli.backbones.base import State, Trace
from toast_cli.utils.errors import ToastError

KINDS = [
    "vit_demo_3",
    "vit:test_vit",
    "vit:test_vit2",
    "vit:test_vit3",
    "vit:test_vit4",
    "timm:test_vit_parallel",
    "timm:test_vit_differential",
    "timm:test_vit_differential_parallel",
    # Two attentions side by side in every block.
    pytest.param("vit:vit_small_patch16_18x2_224", marks=pytest.mark.e2e),
]
"""Between them: class token or not, registers, average and map pooling, LayerScale, LayerNorm and RMSNorm."""


class ByHand(nn.Module):
    """`Q = W_Q X, K = W_K X, V = W_V (X + X_td)` (section 3.1, step iv), in place of the fused projection.

    Parallel blocks project the input of their MLP with the same layer, before q.
    """

    def __init__(self, fused: nn.Linear, signal: Tensor, values: int) -> None:
        super().__init__()
        self.fused, self.signal, self.values = fused, signal, values

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.fused(x)[..., : -self.values], self.fused(x + self.signal)[..., -self.values :]], dim=-1)


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
        projections = backbone.projections[index]
        stock = [projection.layer for projection in projections]
        for projection in projections:
            setattr(projection.attention, projection.name, ByHand(projection.layer, signal, projection.width))
        by_hand = backbone.module.blocks[index](state.hidden)
        for projection, layer in zip(projections, stock, strict=True):
            setattr(projection.attention, projection.name, layer)
        assert torch.allclose(ours, by_hand, atol=1e-9, rtol=1e-9)
        assert not torch.allclose(ours, plain, atol=1e-3)


@torch.no_grad()
def test_maps_are_those_of_the_unfused_attention() -> None:
    torch.manual_seed(0)
    card = registry.load_backbone_card("timm:test_vit_parallel")
    backbone = card.build(card.options(name="timm:test_vit_parallel", weights="none"))
    state = backbone.enter(backbone.example(2))
    fused, unfused = Trace(attention_of=frozenset({0})), Trace(attention_of=frozenset({0}))
    backbone.level(0, state, trace=fused)
    backbone.module.blocks[0].fused_attn = False
    backbone.level(0, state, trace=unfused)
    assert torch.allclose(fused.attention[0], unfused.attention[0], atol=1e-6)
    assert set(fused.mismatch) == {0} and not unfused.mismatch


def test_differential_attention_has_no_maps() -> None:
    card = registry.load_backbone_card("timm:test_vit_differential")
    backbone = card.build(card.options(name="timm:test_vit_differential", weights="none"))
    assert not backbone.has_attention


@pytest.mark.parametrize(("size", "nearest"), [(60, 64), ((64, 70), 72)])
def test_an_image_size_that_patches_do_not_fill_is_refused(size: object, nearest: int) -> None:
    card = registry.load_backbone_card("vit_demo_3")
    with pytest.raises(ToastError) as refused:
        card.build(card.options(name="vit_demo_3", image_size=size))
    assert refused.value.code == "backbone.wrong-image-size"
    assert f"{nearest}" in str(refused.value.what_to_do)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        card.options(name="vit_demo_3", image_size=-64)
