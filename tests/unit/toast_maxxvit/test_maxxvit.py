"""MaxViT, CoAtNet, MaxxViT: levels, where signals enter, sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.staged import build, check_input, check_values, strides
from toast_cli.plugin import UsageError
from toast_maxxvit.parts import ConvolutionPart, PartitionPart, TransformerPart


def norm_like(part: object) -> object:
    module = part.module
    if isinstance(part, TransformerPart):
        return module.norm1.norm if part.stride > 1 else module.norm1
    return (lambda map: module.norm1(map.movedim(1, -1)).movedim(-1, 1)) if part._channels_last else module.norm1


@pytest.mark.parametrize(
    "name",
    ["tiny_coatnet", "tiny_coatnet_max", "tiny_maxvit", "tiny_maxvit_nchw", "tiny_maxvit_parallel", "tiny_maxxvit"],
)
def test_signals_enter_at_the_values_of_attention_and_before_convolutions(name: str) -> None:
    backbone = build(name)
    for index, part in enumerate(backbone.parts):
        if isinstance(part, ConvolutionPart):
            check_input(backbone, index)
        else:
            check_values(backbone, index, norm_like(part))


def test_a_block_of_maxvit_is_a_level_of_convolutions_and_one_of_each_attention() -> None:
    kinds = [type(part) for part in build("tiny_maxvit").parts]
    assert kinds == [ConvolutionPart, PartitionPart, PartitionPart] * 3
    assert [type(part) for part in build("tiny_maxvit_parallel").parts] == [ConvolutionPart, PartitionPart] * 3
    assert [type(part) for part in build("tiny_maxxvit").parts] == [ConvolutionPart, PartitionPart] * 3
    assert [type(part) for part in build("tiny_coatnet").parts] == [ConvolutionPart, TransformerPart, TransformerPart]
    assert strides(build("tiny_maxvit")) == [(16, 16, 2), (16, 32, 2)]


@torch.no_grad()
def test_a_pooled_signal_can_be_projected_first_if_its_pooling_is_linear() -> None:
    assert [build("tiny_coatnet").value_weight(index) is not None for index in range(3)] == [False, True, True]
    assert [build("tiny_coatnet_max").value_weight(index) is not None for index in range(3)] == [False, False, True]


def test_sizes_are_those_of_the_windows() -> None:
    backbone = build("tiny_maxxvit", image_size=(64, 32))
    assert backbone.fixed_size == backbone.require_preprocessing().image_size == (64, 32)
    images: Tensor = torch.zeros(1, 3, 32, 64).double()
    with pytest.raises(UsageError, match="64 × 32 pixels, not 32 × 64"):
        backbone.enter(images)
