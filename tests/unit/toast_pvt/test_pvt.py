"""PVTv2: where signals enter, reductions, images that the strides do not divide."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.staged import build, check_input, check_values, strides
from toast_cli.steering.steering import Steering, run_two_passes


@pytest.mark.parametrize("name", ["tiny_pvt", "tiny_pvt_linear"])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_signals_are_reduced_like_the_tokens_on_their_way_to_the_values(name: str, index: int) -> None:
    backbone = build(name)
    block = backbone.level_modules[index]

    def norm(map: Tensor) -> Tensor:
        return block.norm1(map.movedim(1, -1)).movedim(-1, 1)

    check_values(backbone, index, norm)


@pytest.mark.parametrize("index", [1, 3])
def test_signals_of_a_first_block_enter_before_the_down_sampling(index: int) -> None:
    backbone = build("tiny_pvt")
    check_input(backbone, index)
    assert strides(backbone) == [(16, 24, 2), (24, 32, 2)]


def test_values_of_a_reduced_map_are_not_linear_in_the_signal() -> None:
    assert [build("tiny_pvt").value_weight(index) is not None for index in range(5)] == [False] * 4 + [True]
    assert [build("tiny_pvt_linear").value_weight(index) is not None for index in range(5)] == [False] * 5


@torch.no_grad()
def test_images_that_the_strides_do_not_divide() -> None:
    backbone = build("tiny_pvt")
    images = torch.randn(2, 3, 37, 52).double()  # maps of 10 by 13, 5 by 7 and 3 by 4 cells
    passes = run_two_passes(backbone, Steering(backbone).double(), images)
    assert torch.equal(passes.first.pooled, backbone.stock(images))
    assert passes.similarity is not None and passes.similarity.shape[1:] == backbone.grid(images) == (3, 4)
    assert not torch.equal(passes.last.pooled, passes.first.pooled)
