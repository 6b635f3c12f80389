"""Steering a stock BEiT is the paper's equation, whether or not its biases are in the fused layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.timm_models import build
from toast_cli.backbones.base import State, Trace
from toast_cli.backbones.lazy_signal import ValueSignal
from toast_cli.methods.lora import LoraOptions, build_lora
from toast_cli.utils.errors import UsageError

MODELS = ["timm:test_beit", "timm:test_beit2"]


def attend_by_hand(attention: torch.nn.Module, x: Tensor, signal: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the map and the output of an attention, written out: `V = W_V (X + X_td) + b_V`, position bias and all."""
    W_Q, W_K, W_V = attention.qkv.weight.chunk(3)
    q, k, v = x @ W_Q.T, x @ W_K.T, (x + signal) @ W_V.T
    if attention.q_bias is not None:
        q, v = q + attention.q_bias, v + attention.v_bias
    q, k, v = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    attended = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + bias).softmax(-1)
    return attended, attention.proj((attended @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_steered_block_is_the_equation(name: str) -> None:
    backbone = build(name)
    state = backbone.enter(backbone.example(2).double())
    signal = torch.randn_like(state.hidden)
    trace = Trace(attention_of=frozenset({1}))
    steered = backbone.level(1, State(state.hidden), signal, trace).hidden
    beit, block = backbone.module, backbone.module.blocks[1]
    shared = beit.rel_pos_bias
    bias = block.attn._get_rel_pos_bias() if shared is None else shared()
    gains = (1, 1) if block.gamma_1 is None else (block.gamma_1, block.gamma_2)
    attended, mixed = attend_by_hand(block.attn, block.norm1(state.hidden), signal, bias)
    tokens = state.hidden + gains[0] * mixed
    by_hand = tokens + gains[1] * block.mlp(block.norm2(tokens))
    assert torch.allclose(steered, by_hand, atol=1e-9, rtol=1e-9)
    assert torch.allclose(trace.attention[1], attended, atol=1e-9)
    assert not torch.allclose(steered, backbone.level(1, State(state.hidden)).hidden, atol=1e-3)
    folded = backbone.level(1, State(state.hidden), ValueSignal(signal @ backbone.value_weight(1).T)).hidden
    assert torch.allclose(folded, by_hand, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_low_rank_factors_change_the_network_although_timm_does_not_call_their_layer() -> None:
    backbone = build("timm:test_beit")
    images = backbone.example(2).double()
    before = backbone.leave(backbone.run(backbone.enter(images))).pooled
    model = build_lora(LoraOptions(), backbone)
    signals = [torch.zeros(2, 13, 32, dtype=torch.float64)] * 3
    unchanged = backbone.leave(backbone.run(backbone.enter(images), signals)).pooled
    assert torch.allclose(before, unchanged, atol=1e-12), "the second factor starts at zero"
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter))
    assert not torch.allclose(before, backbone.leave(backbone.run(backbone.enter(images))).pooled, atol=1e-3)


@torch.no_grad()
def test_position_biases_follow_the_image_size() -> None:
    backbone = build("timm:test_beit", image_size=(24, 64))
    images = backbone.example(1).double()
    assert images.shape[-2:] == (24, 64) and backbone.grid(images) == (3, 8)
    assert torch.equal(backbone.leave(backbone.run(backbone.enter(images))).pooled, backbone.stock(images))


def test_an_image_size_that_patches_do_not_fill_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        build("timm:test_beit", image_size=(24, 60))
    assert refused.value.code == "backbone.wrong-image-size"
