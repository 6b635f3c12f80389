"""Steering a stock ViT with relative positions is the paper's equation, position bias included."""

from __future__ import annotations

import pytest
import torch

from tests.timm_models import build
from toast_cli.backbones.base import State, Trace


@pytest.mark.parametrize("name", ["timm:test_vit_relpos_table", "timm:test_vit_relpos_shared"])
@torch.no_grad()
def test_a_steered_block_is_the_equation(name: str) -> None:
    backbone = build(name)
    state = backbone.enter(backbone.example(2).double())
    signal = torch.randn_like(state.hidden)
    trace = Trace(attention_of=frozenset({1}))
    steered = backbone.level(1, State(state.hidden), signal, trace).hidden
    block = backbone.module.blocks[1]
    attention, x = block.attn, block.norm1(state.hidden)
    (W_Q, W_K, W_V), (b_Q, b_K, b_V) = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    parts = (x @ W_Q.T + b_Q, x @ W_K.T + b_K, (x + signal) @ W_V.T + b_V)
    q, k, v = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts)
    bias = (backbone.module.shared_rel_pos or attention.rel_pos).get_bias()
    scores = attention.q_norm(q) * attention.scale @ attention.k_norm(k).transpose(-2, -1)
    attended = (scores + bias).softmax(-1)
    mixed = attention.proj((attended @ v).transpose(1, 2).flatten(2))
    tokens = state.hidden + block.ls1(mixed)
    assert torch.allclose(steered, tokens + block.ls2(block.mlp(block.norm2(tokens))), atol=1e-9, rtol=1e-9)
    assert torch.allclose(trace.attention[1], attended, atol=1e-9)
    assert not torch.allclose(attended, scores.softmax(-1), atol=1e-3)


@torch.no_grad()
def test_position_biases_follow_the_image_size() -> None:
    backbone = build("timm:test_vit_relpos_shared", image_size=(24, 64))
    images = backbone.example(1).double()
    assert images.shape[-2:] == (24, 64) and backbone.grid(images) == (3, 8)
    assert torch.equal(backbone.leave(backbone.run(backbone.enter(images))).pooled, backbone.stock(images))
