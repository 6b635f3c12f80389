"""XCiT: attention over channels is steered at the values, and class attention is the end of the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.timm_models import build
from toast_cli.attention.feature_energy import build_recorder
from toast_cli.backbones.base import State
from toast_cli.methods.adapted_model import AdaptedModel
from toast_cli.model.model import BackboneSnapshot, Model
from toast_cli.steering.steering import Steering
from toast_cli.tasks.classification import ClassificationOptions, build_classification
from toast_cli.utils.errors import ToastError


def attend(attention: object, x: Tensor, signal: Tensor) -> Tensor:
    """Cross-covariance attention by the equations of XCiT, with the signal at the input of the values."""
    W_Q, W_K, W_V = attention.qkv.weight.chunk(3)
    b_Q, b_K, b_V = attention.qkv.bias.chunk(3)
    q, k, v = (
        F.linear(i, W, b).unflatten(-1, (attention.num_heads, -1))
        for i, W, b in ((x, W_Q, b_Q), (x, W_K, b_K), (x + signal, W_V, b_V))
    )
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    weights = (torch.einsum("bnhc,bnhd->bhcd", q, k) * attention.temperature).softmax(dim=-1)
    return attention.proj(torch.einsum("bhcd,bnhd->bnhc", weights, v).flatten(2))


@pytest.mark.parametrize("name", ["test_xcit", "test_xcit_p8"])
@torch.no_grad()
def test_a_steered_block_is_the_equations_of_cross_covariance_attention(name: str) -> None:
    backbone = build(name)
    images = torch.randn(2, 3, 48, 96).double()
    state, grid = backbone.enter(images), backbone.grid(images)
    signal = torch.randn_like(state.hidden)
    for index in (0, 2):
        block = backbone.blocks[index]
        ours = backbone.level(index, State(state.hidden, state.context), signal).hidden
        x = state.hidden + block.gamma1 * attend(block.attn, block.norm1(state.hidden), signal)
        x = x + block.gamma3 * block.local_mp(block.norm3(x), *grid)
        x = x + block.gamma2 * block.mlp(block.norm2(x))
        assert torch.allclose(ours, x, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_any_size_is_read_and_z_is_the_patch_tokens() -> None:
    backbone = build("test_xcit")
    for height, width in ((64, 64), (48, 96), (50, 70)):
        images = torch.randn(2, 3, height, width).double()
        readout = backbone.leave(backbone.run(backbone.enter(images)))
        rows, columns = backbone.grid(images)
        assert readout.z.shape == (2, rows * columns, backbone.width)
        assert torch.equal(readout.pooled, backbone.stock(images))


@torch.no_grad()
def test_tokens_of_a_cache_have_the_grid_of_the_preprocessed_size() -> None:
    backbone = build("test_xcit")
    state = backbone.enter(backbone.example(2).double())
    assert torch.equal(backbone.level(0, State(state.hidden)).hidden, backbone.level(0, state).hidden)
    with pytest.raises(ToastError) as refused:
        backbone.level(0, State(state.hidden[:, 1:]))
    assert refused.value.code == "backbone.wrong-image-size"


@torch.no_grad()
def test_maps_are_feature_energy_on_the_grid_of_patches() -> None:
    backbone = build("test_xcit")
    backbone.module.float()
    snapshot = BackboneSnapshot.from_backbone(backbone)
    steering = Steering(backbone)
    model = Model(
        AdaptedModel(backbone, [], steering),
        build_classification(ClassificationOptions(), backbone, ("a", "b")),
        snapshot,
    )
    images = torch.randn(2, 3, 48, 96)
    recorded = build_recorder(model).record(images)
    assert recorded.kind == "feature energy"
    assert recorded.first.shape == recorded.similarity.shape == (2, 3, 6)
    assert torch.allclose(recorded.first.sum((1, 2)), torch.ones(2))
