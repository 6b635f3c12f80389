"""CaiT: talking heads are steered at the values, and class attention is the end of the network."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.timm_models import build
from toast_cait.backbone import wrap_cait
from toast_cli.backbones.base import State, Trace
from toast_cli.utils.errors import ToastError


def attend(attention: nn.Module, x: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
    """Talking heads by the equations of CaiT, with the signal at the input of the values; also the softmax."""
    heads = attention.num_heads
    W_Q, W_K, W_V = attention.qkv.weight.chunk(3)
    b_Q, b_K, b_V = attention.qkv.bias.chunk(3)
    q, k, v = (
        F.linear(i, W, b).unflatten(-1, (heads, -1))
        for i, W, b in ((x, W_Q, b_Q), (x, W_K, b_K), (x + signal, W_V, b_V))
    )
    logits = torch.einsum("bnhc,bmhc->bnmh", q, k) * attention.scale
    softmax = attention.proj_l(logits).softmax(dim=2)
    out = torch.einsum("bnmh,bmhc->bnhc", attention.proj_w(softmax), v).flatten(2)
    return attention.proj(out), softmax.permute(0, 3, 1, 2)


@torch.no_grad()
def test_a_steered_block_and_its_maps_are_the_equations_of_talking_heads() -> None:
    backbone = build("test_cait")
    state = backbone.enter(backbone.example(2).double())
    signal = torch.randn_like(state.hidden)
    for index in (0, 2):
        block, trace = backbone.blocks[index], Trace(attention_of=frozenset({index}))
        ours = backbone.level(index, State(state.hidden), signal, trace).hidden
        attended, softmax = attend(block.attn, block.norm1(state.hidden), signal)
        x = state.hidden + block.gamma_1 * attended
        x = x + block.gamma_2 * block.mlp(block.norm2(x))
        assert torch.allclose(ours, x, atol=1e-9, rtol=1e-9)
        assert torch.allclose(trace.attention[index], softmax, atol=1e-9)
        assert not torch.allclose(ours, backbone.level(index, State(state.hidden)).hidden, atol=1e-3)


@torch.no_grad()
def test_z_is_the_patch_tokens_and_the_pooled_features_the_class_tokens() -> None:
    backbone = build("test_cait", image_size=(48, 80))
    images = backbone.example(2).double()
    assert images.shape[-2:] == (48, 80) and backbone.grid(images) == (3, 5)
    readout = backbone.leave(backbone.run(backbone.enter(images)))
    features = backbone.module.forward_features(images)
    assert torch.equal(readout.z, features[:, 1:]) and torch.equal(readout.pooled, features[:, 0])
    early = backbone.tap(backbone.run(backbone.enter(images)))
    assert torch.allclose(early.z, readout.z, atol=1e-12)


def test_blocks_with_another_attention_are_refused() -> None:
    module = timm.create_model("test_cait")
    module.blocks[1].attn = nn.Identity()
    with pytest.raises(ToastError) as refused:
        wrap_cait(module)
    assert refused.value.code == "backbone.cannot-steer"
    assert wrap_cait(timm.create_model("test_vit")) is None
