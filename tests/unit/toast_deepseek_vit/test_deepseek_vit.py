"""The towers of DeepSeek: the aligner is a part of the pooling, and pads maps of any size."""

from __future__ import annotations

import pytest
import torch

from tests.contract.tiny_models import list_tiny_models
from tests.timm_models import build, check_maps
from toast_cli.backbones.base import Trace

NAMES = [name.removeprefix("timm:") for name in list_tiny_models()["deepseek_vit"]]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_images_that_are_not_square_give_the_stock_features(name: str) -> None:
    backbone = build(name)
    images = torch.randn(2, 3, 32, 80).double()
    readout = backbone.leave(backbone.run(backbone.enter(images)))
    assert readout.z.shape == (2, 10, backbone.width) and backbone.grid(images) == (2, 5)
    assert torch.equal(readout.pooled, backbone.stock(images))
    assert torch.equal(readout.z.unflatten(1, (2, 5)), backbone.encoder.forward_features(images))


@torch.no_grad()
def test_the_signal_changes_the_values_alone_and_maps_are_those_of_unfused_attention() -> None:
    backbone = build("test_deepseek_vit")
    state = backbone.enter(torch.randn(2, 3, 32, 80).double())
    signal, block = torch.randn_like(state.hidden), backbone.blocks[1]
    trace = Trace(attention_of=frozenset({1}))
    ours = backbone.level(1, state, signal, trace).hidden
    attention = block.attn
    values = (block.norm1(state.hidden) + signal) @ backbone.value_weight(1).T + attention.qkv.bias.chunk(3)[2]
    mixed = trace.attention[1] @ values.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    x = state.hidden + attention.proj(mixed.transpose(1, 2).flatten(2))
    assert torch.allclose(ours, x + block.mlp(block.norm2(x)), atol=1e-9, rtol=1e-9)
    check_maps(backbone, 1, state)
