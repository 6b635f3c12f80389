"""LeViT: signals enter at the values of every head, before the batch norm, also where attention halves the map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests import timm_models
from toast_cli.backbones.lazy_signal import ValueSignal
from toast_cli.steering.steering import Steering, run_two_passes
from toast_levit.backbone import LevitBackbone


def build(name: str, **options: object) -> LevitBackbone:
    backbone = timm_models.build(name, **options)
    for place, buffer in backbone.module.named_buffers():
        if place.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand_like(buffer), alpha=0.5)
    return backbone


def attend(attention: nn.Module, x: Tensor, signal: Tensor) -> Tensor:
    """LeViT's attention on tokens `[B, N, C]`: q and k of X, v of X + signal, each normed (section 3.1, step iv)."""
    down = hasattr(attention, "kv")
    projection = attention.kv if down else attention.qkv
    plain, steered = (projection(part).unflatten(-1, (attention.num_heads, -1)) for part in (x, x + signal))
    v, others = steered[..., -attention.val_dim :], plain[..., : -attention.val_dim]
    if down:
        q, k = attention.q(x).unflatten(-1, (attention.num_heads, -1)), others
    else:
        q, k = others.chunk(2, dim=-1)
    bias = attention.attention_biases[:, attention.attention_bias_idxs]
    weights = (torch.einsum("bnhc,bmhc->bhnm", q, k) * attention.scale + bias).softmax(-1)
    return attention.proj(torch.einsum("bhnm,bmhc->bnhc", weights, v).flatten(2))


@torch.no_grad()
def test_a_steered_block_is_the_equation_in_both_forms_of_the_signal() -> None:
    backbone = build("test_levit", image_size=(48, 64))
    state = backbone.enter(backbone.example(2).double())
    for index, block in enumerate(backbone.blocks):
        signal = torch.randn_like(state.hidden)
        ours = backbone.level(index, state, signal).hidden
        x, sent = (part.flatten(2).transpose(1, 2) for part in (state.hidden, signal))
        x = x + attend(block.attn, x, sent) if hasattr(block, "attn") else attend(block.attn_downsample, x, sent)
        x = x + block.mlp(x)
        assert torch.allclose(ours.flatten(2).transpose(1, 2), x, atol=1e-9, rtol=1e-9)
        values = torch.einsum("vc,bchw->bvhw", backbone.value_weight(index), signal)
        multiplied = backbone.level(index, state, ValueSignal(values)).hidden
        assert torch.allclose(multiplied, ours, atol=1e-9, rtol=1e-9)
        plain = backbone.level(index, state)
        assert not torch.allclose(plain.hidden, ours, atol=1e-3)
        state = plain


@torch.no_grad()
def test_convolutions_are_steered_like_linear_layers() -> None:
    linear, convolutional = build("test_levit"), build("test_levit_conv", image_size=64)
    weights = linear.module.state_dict()
    shapes = {name: tensor.shape for name, tensor in convolutional.module.state_dict().items()}
    convolutional.module.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in weights.items()})
    state = linear.enter(linear.example(2).double())
    signals = torch.randn_like(state.hidden)
    for index in (0, 1):
        outputs = [backbone.level(index, state, signals).hidden for backbone in (linear, convolutional)]
        assert torch.allclose(*outputs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["test_levit", "test_levit_conv"])
@torch.no_grad()
def test_maps_with_odd_sides_receive_cropped_signals(name: str) -> None:
    backbone = build(name, image_size=56)
    images = backbone.example(2).double()
    assert backbone.grid(images) == (2, 2)  # from 7 and 4
    steering = Steering(backbone).double()
    steering.selection.xi.copy_(backbone.stock(images)[0])
    passes = run_two_passes(backbone, steering, images)
    assert torch.equal(passes.first.pooled, backbone.stock(images))
    assert not torch.equal(passes.first.pooled, passes.last.pooled)
