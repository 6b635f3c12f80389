"""Folding changes nothing: one matrix per level gives what P, the A's, B_l and W_V gave, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.backbones import BACKBONES, convnext, example, randomly
from toast_cli.backbones.base import Level
from toast_cli.steering.composition import choose_carried_levels
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


def test_feedback_stops_where_that_makes_later_matrices_cheaper() -> None:
    """Stages of widths 96, 192, 384 and 768: the narrow levels read few channels instead of those of z."""
    narrow = convnext()
    widths = [(96, 96, 1)] * 2 + [(96, 192, 2), (192, 192, 1), (192, 384, 2), (384, 384, 1)]
    narrow.levels = [Level(width_in, width_out, "deconvolution", stride) for width_in, width_out, stride in widths]
    assert choose_carried_levels(narrow, range(6)) == {2, 4}
    assert choose_carried_levels(narrow, range(2)) == frozenset()
    assert FoldedSteering(Steering(narrow), narrow).U.keys() == {"2", "4"}


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
