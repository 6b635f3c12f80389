"""Hiera and SAM 2's encoder: where signals enter, order of the tokens, sizes, refusals."""

from __future__ import annotations

import pytest
import torch
from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet
from torch import Tensor

from tests.staged import build, check_values, images, level_inputs, strides
from toast_cli.plugin import ToastError, UsageError, wrap_model
from toast_cli.steering.steering import Steering, run_two_passes


@pytest.mark.parametrize("name", ["tiny_hiera", "tiny_hiera_abswin", "tiny_hieradet"])
@pytest.mark.parametrize("index", range(4))
def test_signals_enter_at_the_values_of_every_block(name: str, index: int) -> None:
    backbone = build(name)

    def norm(map: Tensor) -> Tensor:
        return backbone.module.blocks[index].norm1(map.movedim(1, -1)).movedim(-1, 1)

    check_values(backbone, index, norm)


def test_pooled_queries_are_undone_by_deconvolutions() -> None:
    assert strides(build("tiny_hiera")) == [(16, 32, 2), (32, 64, 2)]
    assert strides(build("tiny_hieradet")) == [(16, 32, 2), (32, 64, 2)]
    assert strides(build("tiny_hiera_abswin")) == [(16, 32, 2), (32, 64, 1)]


@torch.no_grad()
def test_levels_are_in_rows_and_columns_although_the_model_orders_tokens_by_mask_units() -> None:
    backbone = build("tiny_hiera")
    maps = backbone.module.forward_intermediates(
        images(backbone), intermediates_only=True, coarse=False, stop_early=False
    )
    inputs = level_inputs(backbone)
    for map, found in zip(maps, inputs[1:], strict=False):
        assert torch.equal(map, found)


@torch.no_grad()
def test_sizes_that_windows_do_not_fill() -> None:
    module = HieraDet(embed_dim=16, stages=(1, 1), q_pool=1, window_spec=(8, 6), global_att_blocks=(), num_classes=0)
    backbone = wrap_model(module, library="timm")
    assert backbone is not None
    for size in ((32, 96), (64, 64)):
        inputs = torch.randn(1, 3, *size)
        passes = run_two_passes(backbone, Steering(backbone), inputs)
        assert torch.equal(passes.first.pooled, backbone.stock(inputs))
        assert passes.similarity is not None and passes.similarity.shape[1:] == (size[0] // 8, size[1] // 8)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="64 × 32 pixels, not 32 × 32") as refused:
        build("tiny_hiera").enter(torch.zeros(1, 3, 32, 32).double())
    assert refused.value.code == "backbone.wrong-image-size"
    with pytest.raises(UsageError, match="multiples of 32"):
        build("tiny_hieradet").enter(torch.zeros(1, 3, 40, 32).double())
    assert build("tiny_hiera", image_size=(32, 64)).fixed_size == (32, 64)


def test_videos_and_uneven_strides_are_refused() -> None:
    with pytest.raises(ToastError, match="videos") as refused:
        video = {"img_size": (4, 32, 32), "mask_unit_size": (1, 8, 8), "q_stride": (1, 2, 2), "sep_pos_embed": True}
        patches = {"patch_kernel": (3, 7, 7), "patch_stride": (2, 4, 4), "patch_padding": (1, 3, 3)}
        wrap_model(Hiera(embed_dim=16, stages=(1, 1), q_pool=1, **video, **patches), library="timm")
    assert refused.value.code == "backbone.cannot-steer"
    with pytest.raises(ToastError, match="1 × 2"):
        uneven = HieraDet(embed_dim=16, stages=(1, 1), q_pool=1, q_stride=(1, 2), window_spec=(8, 4))
        wrap_model(uneven, library="timm")
