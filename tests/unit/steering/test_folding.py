"""Folding changes nothing: one matrix per level gives what P, the A's, B_l and W_V gave, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.backbones import BACKBONES, convnext, example, randomly
from toast_cli.steering.folding import FoldedSteering
from toast_cli.steering.lite import add_low_rank_factors
from toast_cli.steering.steering import Steering, run_one_pass, run_two_passes


@pytest.mark.parametrize("levels", [None, range(2), range(1, 3)], ids=["full", "early", "middle"])
@pytest.mark.parametrize("name", BACKBONES)
def test_one_matrix_a_level_gives_what_the_feedback_path_gave(name: str, levels: range | None) -> None:
    backbone = randomly(BACKBONES[name]())
    steering = Steering(backbone, levels).double()
    for weight in steering.parameters():
        nn.init.normal_(weight, std=0.4)
    path, inputs = FoldedSteering(steering, backbone), example(backbone)
    with torch.no_grad():
        compared = run_two_passes(backbone, steering, inputs).first.compared.movedim(backbone.channel_dim, -1)
        steering.selection.xi.copy_(compared[0].flatten(0, -2)[-1])  # so that some tokens are surely selected
        before, after = run_two_passes(backbone, steering, inputs), run_two_passes(backbone, path, inputs)
        unsteered = run_one_pass(backbone, inputs)
    assert not torch.allclose(before.last.pooled, unsteered.last.pooled, atol=1e-3)
    assert (before.last.pooled - after.last.pooled).abs().max() < 1e-9
    assert torch.equal(before.similarity, after.similarity)
    assert len(path.F) == len(steering.levels)


def test_low_rank_factors_are_folded_in() -> None:
    backbone = randomly(convnext())
    steering = Steering(backbone).double()
    for factor in add_low_rank_factors(steering.feedback, 2, 3.0):
        nn.init.normal_(factor, std=0.5)
    steering.double()
    inputs = example(backbone)
    with torch.no_grad():
        before = run_two_passes(backbone, steering, inputs)
        after = run_two_passes(backbone, FoldedSteering(steering, backbone), inputs)
    assert (before.last.pooled - after.last.pooled).abs().max() < 1e-9
