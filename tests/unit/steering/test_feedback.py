"""The feedback path's own layers."""

from __future__ import annotations

import torch
from torch import nn

from toast_cli.steering.feedback import Deconvolution, get_base_weight
from toast_cli.steering.reconstruction import crop_to_overlap


def test_a_deconvolution_is_torchs_transposed_convolution() -> None:
    torch.manual_seed(0)
    ours, theirs = Deconvolution(6, 3, 4), nn.ConvTranspose2d(6, 3, kernel_size=4, stride=4, bias=False)
    get_base_weight(ours).data.copy_(theirs.weight.permute(1, 2, 3, 0).flatten(0, 2)[..., None, None])
    x = torch.randn(2, 6, 5, 7)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


def test_two_maps_of_unequal_size_are_compared_where_both_are() -> None:
    a, b = torch.arange(12.0).view(1, 1, 3, 4), torch.zeros(1, 1, 4, 3)
    mine, other = crop_to_overlap(a, b)
    assert mine.shape == other.shape == (1, 1, 3, 3)
    assert torch.equal(mine[0, 0, 0], torch.tensor([0.0, 1.0, 2.0]))
