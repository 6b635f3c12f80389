"""NaFlexViTs take images of any aspect ratio, and batches of patches of images of different ratios."""

from __future__ import annotations

import pytest
import torch
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg, batch_patchify
from torch import Tensor

from tests.timm_models import build
from toast_cli.backbones.base import Backbone, State, Trace
from toast_cli.steering.steering import Steering, compute_steered_features, run_two_passes
from toast_cli.utils.errors import ToastError, UsageError
from toast_naflexvit.backbone import wrap_naflexvit

MODELS = ["timm:test_naflexvit", "timm:test_naflexvit_map", "timm:test_naflexvit_rope"]


def make_patches(*images: Tensor) -> dict[str, Tensor]:
    """Return images `[1, 3, H, W]` of different sizes as one batch, as timm's NaFlex loader does."""
    patches, grids = zip(*(batch_patchify(image, (8, 8)) for image in images), strict=True)
    longest = max(part.shape[1] for part in patches)
    coordinates = [torch.cartesian_prod(torch.arange(rows), torch.arange(columns)) for rows, columns in grids]

    def pad(part: Tensor) -> Tensor:
        return torch.cat((part, part.new_zeros(longest - len(part), *part.shape[1:])))

    return {
        "patches": torch.stack([pad(part[0]) for part in patches]),
        "patch_coord": torch.stack([pad(part) for part in coordinates]),
        "patch_valid": torch.stack([pad(torch.ones(len(part), dtype=torch.bool)) for part in coordinates]),
    }


def make_steering(backbone: Backbone) -> Steering:
    steering = Steering(backbone).double()
    for parameter in steering.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return steering


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_images_of_other_ratios_in_one_batch_have_the_features_that_they_have_alone(name: str) -> None:
    backbone = build(name)
    wide, tall = torch.randn(1, 3, 16, 64).double(), torch.randn(1, 3, 40, 24).double()
    batch, steering = make_patches(wide, tall), make_steering(backbone)
    plain = backbone.leave(backbone.run(backbone.enter(batch)))
    assert torch.equal(plain.pooled, backbone.stock(batch))
    assert plain.real is not None
    assert (plain.real.sum(1) - backbone.prefix_tokens).tolist() == [16, 15]
    together = run_two_passes(backbone, steering, batch).last.pooled
    alone = torch.cat([run_two_passes(backbone, steering, image).last.pooled for image in (wide, tall)])
    assert torch.allclose(together, alone, atol=1e-9)
    assert torch.allclose(compute_steered_features(backbone, steering, batch), alone, atol=1e-9)
    assert not torch.allclose(together, plain.pooled, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_run_has_one_image_size_of_any_ratio(name: str) -> None:
    backbone = build(name, image_size=(16, 80))
    images = backbone.example(2).double()
    assert images.shape[-2:] == (16, 80) and backbone.grid(images) == (2, 10)
    assert torch.equal(backbone.leave(backbone.run(backbone.enter(images))).pooled, backbone.stock(images))
    # Caches keep tokens without their context.
    state = backbone.enter(images)
    assert torch.equal(backbone.level(1, State(state.hidden)).hidden, backbone.level(1, state).hidden)


@torch.no_grad()
def test_no_real_token_attends_to_padding() -> None:
    backbone = build("timm:test_naflexvit")
    batch = make_patches(torch.randn(1, 3, 16, 64).double(), torch.randn(1, 3, 40, 24).double())
    trace = Trace(attention_of=frozenset({0}))
    backbone.run(backbone.enter(batch), trace=trace)
    assert (trace.attention[0][1, :, :-1, -1] == 0).all() and float(trace.mismatch[0]) < 1e-9


@pytest.mark.parametrize("name", ["timm:test_naflexvit", "timm:test_naflexvit_rope"])
@torch.no_grad()
def test_a_steered_block_is_the_stock_block_with_other_values(name: str) -> None:
    backbone = build(name)
    state = backbone.enter(backbone.example(2).double())
    signal = torch.randn_like(state.hidden)
    steered = backbone.level(1, state, signal).hidden
    (projection,) = backbone.projections[1]
    layer, stock, first = projection.layer, torch.nn.Linear.forward, projection.begin
    layer.forward = lambda x: torch.cat([stock(layer, x)[..., :first], stock(layer, x + signal)[..., first:]], dim=-1)
    by_hand = backbone.level(1, state).hidden
    del layer.forward
    assert torch.allclose(steered, by_hand, atol=1e-9, rtol=1e-9)
    assert not torch.allclose(steered, backbone.level(1, state).hidden, atol=1e-3)


def test_a_size_that_patches_do_not_fill_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        build("timm:test_naflexvit", image_size=(16, 20))
    assert refused.value.code == "backbone.wrong-image-size"


def test_blocks_without_a_known_attention_are_refused() -> None:
    module = NaFlexVit(NaFlexVitCfg(patch_size=8, embed_dim=32, depth=2, num_heads=2))
    module.blocks[1].attn = torch.nn.Identity()
    with pytest.raises(ToastError) as refused:
        wrap_naflexvit(module)
    assert refused.value.code == "backbone.cannot-steer"
