"""The towers of Gemma 4: normalized values, clamps, grouped queries, soft tokens as a part of the pooling."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.gemma4_vit import apply_multidimensional_rope
from torch import Tensor, nn

from tests import timm_models
from tests.contract.tiny_models import list_tiny_models
from tests.timm_models import check_maps
from toast_cli.backbones.lazy_signal import ValueSignal
from toast_cli.utils.errors import UsageError
from toast_gemma_vit.backbone import GemmaVitBackbone, wrap_gemma_vit
from toast_gemma_vit.position_lookup import look_up_positions

NAMES = [name.removeprefix("timm:") for name in list_tiny_models()["gemma_vit"]]


def build(name: str) -> GemmaVitBackbone:
    backbone = timm_models.build(name)
    for part, buffer in backbone.module.named_buffers():
        if part.endswith(("put_min", "put_max")):
            buffer.fill_(-1.5 if part.endswith("min") else 1.5)
    return backbone


def attend(attention: nn.Module, cosines: Tensor, sines: Tensor, x: Tensor, signal: Tensor) -> Tensor:
    """Gemma's attention: the signal is added to the input of W_V, between the clamps (section 3.1, step iv)."""
    projection, limit = attention.v_proj, 1.5 if attention.v_proj.use_clipped else float("inf")
    v = ((x.clamp(-limit, limit) + signal) @ projection.linear.weight.T).clamp(-limit, limit)
    q, k, v = (part.unflatten(-1, (-1, attention.head_dim)) for part in (attention.q_proj(x), attention.k_proj(x), v))
    q, k = (
        apply_multidimensional_rope(norm(part), cosines, sines).transpose(1, 2)
        for norm, part in ((attention.q_norm, q), (attention.k_norm, k))
    )
    v = (v * (v.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).transpose(1, 2)
    k, v = (part.repeat_interleave(attention.num_kv_groups, dim=1) for part in (k, v))
    return attention.o_proj(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", ["test_gemma4_vit", "test_gemma4_vit_soft"])
@torch.no_grad()
def test_a_steered_block_is_the_equation_in_both_forms_of_the_signal(name: str) -> None:
    backbone = build(name)
    state = backbone.enter(torch.rand(2, 3, 24, 48).double())
    signal = torch.randn_like(state.hidden)
    for index in (0, 2):
        block = backbone.blocks[index]
        ours = backbone.level(index, state, signal).hidden
        rotation = state.context.shared.rotation.values()
        x = state.hidden + block.norm2(attend(block.attn, *rotation, block.norm1(state.hidden), signal))
        x = x + block.norm4(block.mlp(block.norm3(x)))
        assert torch.allclose(ours, x, atol=1e-9, rtol=1e-9)
        multiplied = ValueSignal(signal @ backbone.value_weight(index).T)
        assert torch.allclose(backbone.level(index, state, multiplied).hidden, x, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["test_gemma4_vit", "test_gemma4_vit_soft"])
@torch.no_grad()
def test_maps_are_those_of_the_librarys_unfused_attention(name: str) -> None:
    backbone = build(name)
    state = backbone.enter(torch.rand(2, 3, 48, 24).double())
    check_maps(backbone, 1, state)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_images_that_are_not_square_give_the_stock_features(name: str) -> None:
    backbone = build(name)
    images = torch.rand(2, 3, 24, 72).double()
    readout = backbone.leave(backbone.run(backbone.enter(images)))
    assert readout.z.shape == (2, 27, backbone.width) and backbone.grid(images) == (3, 9)
    assert torch.equal(readout.pooled, backbone.stock(images))


@torch.no_grad()
def test_positions_by_index_are_those_of_the_stock_model_bit_for_bit() -> None:
    embed = build("test_gemma4_vit").encoder.patch_embed
    images = torch.rand(2, 3, 32, 40).double()
    stock = embed(images)[0]
    with look_up_positions(embed):
        assert torch.equal(embed(images)[0], stock)
    assert "_position_embeddings" not in vars(embed)


def test_patches_that_soft_tokens_cannot_average_are_refused() -> None:
    backbone = build("test_gemma4_vit_enc")
    with pytest.raises(UsageError) as refused:
        backbone.enter(torch.rand(1, 3, 32, 48).double())
    assert refused.value.code == "backbone.wrong-image-size" and "24" in str(refused.value.what_to_do)


def test_images_of_one_channel_are_refused() -> None:
    with pytest.raises(UsageError) as refused:
        wrap_gemma_vit(timm.create_model("test_gemma4_vit", in_chans=1))
    assert refused.value.code == "backbone.wrong-channels"
