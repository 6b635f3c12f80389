"""The towers of Qwen3: rotary positions, the merger as a part of the pooling, maps against unfused attention."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F

from tests.contract.tiny_models import list_tiny_models
from tests.timm_models import build, check_maps
from toast_cli.utils.errors import ToastError, UsageError
from toast_qwen_vit.backbone import wrap_qwen_vit

NAMES = [name.removeprefix("timm:") for name in list_tiny_models()["qwen_vit"]]


def attend(attention: nn.Module, rope: Tensor, x: Tensor, signal: Tensor) -> Tensor:
    """Attention with rotary positions (section 3.1, step iv, for the values)."""
    W_Q, W_K, W_V = attention.qkv.weight.chunk(3)
    b_Q, b_K, b_V = attention.qkv.bias.chunk(3)
    q, k, v = (
        F.linear(i, W, b).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for i, W, b in ((x, W_Q, b_Q), (x, W_K, b_K), (x + signal, W_V, b_V))
    )
    q, k = (apply_rot_embed_cat(part, rope, half=True) for part in (q, k))
    weights = (q @ k.transpose(-2, -1) * attention.head_dim**-0.5).softmax(dim=-1)
    return attention.proj((weights @ v).transpose(1, 2).flatten(2))


@torch.no_grad()
def test_a_steered_block_is_the_equation() -> None:
    backbone = build("test_qwen3_vit")
    state = backbone.enter(torch.randn(2, 3, 32, 96).double())
    signal = torch.randn_like(state.hidden)
    rope = backbone.encoder.rope.get_embed(shape=(2, 6))
    for index in (0, 2):
        block = backbone.blocks[index]
        ours = backbone.level(index, state, signal).hidden
        x = state.hidden + attend(block.attn, rope, block.norm1(state.hidden), signal)
        x = x + block.mlp(block.norm2(x))
        assert torch.allclose(ours, x, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_maps_are_those_of_the_librarys_unfused_attention() -> None:
    backbone = build("test_qwen3_vit")
    state = backbone.enter(torch.randn(2, 3, 64, 32).double())
    check_maps(backbone, 1, state)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_images_that_are_not_square_give_the_stock_features(name: str) -> None:
    backbone = build(name)
    images = torch.randn(2, 3, 32, 96).double()
    readout = backbone.leave(backbone.run(backbone.enter(images)))
    assert readout.z.shape == (2, 12, backbone.width) and backbone.grid(images) == (2, 6)
    assert torch.equal(readout.pooled, backbone.stock(images))
    assert readout.pooled.shape == (2, backbone.head_width)


def test_patches_that_the_merger_cannot_join_are_refused() -> None:
    backbone = build("test_qwen3_vit_enc")
    with pytest.raises(UsageError) as refused:
        backbone.enter(torch.randn(1, 3, 48, 64).double())
    assert refused.value.code == "backbone.wrong-image-size" and "32" in str(refused.value.what_to_do)


def test_another_attention_is_refused() -> None:
    module = timm.create_model("test_qwen3_vit")
    module.encoder.blocks[0].attn = nn.Identity()
    with pytest.raises(ToastError) as refused:
        wrap_qwen_vit(module)
    assert refused.value.code == "backbone.cannot-steer"
