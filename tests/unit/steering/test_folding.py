"""Folding changes nothing: one matrix per level gives what P, the A's, B_l and W_V gave, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.backbones import BACKBONES, convnext, example, randomly
from toast_cli.backbones.base import Level
from toast_cli.steering import folding
from toast_cli.steering.composition import choose_carried_levels
from toast_cli.steering.folding import FoldedSteering, fold_during_evaluation
from toast_cli.steering.lite import add_low_rank_factors
from toast_cli.steering.steering import Steering, compute_steered_features, run_one_pass, run_two_passes


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


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_an_evaluation_composes_once_and_gives_what_the_feedback_path_gave(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = randomly(BACKBONES[name]())
    steering, composed = Steering(backbone).double(), list[torch.dtype]()
    for weight in steering.parameters():
        nn.init.normal_(weight, std=0.4)
    compose = folding.compose_segments
    monkeypatch.setattr(folding, "compose_segments", lambda *a: composed.append(a[4]) or compose(*a))
    inputs = example(backbone)
    with torch.no_grad():
        for change in (0.0, 0.1):  # a second evaluation sees weights that have changed since the first
            for weight in steering.parameters():
                weight.add_(change)
            whole = run_two_passes(backbone, steering, inputs).last.pooled
            with fold_during_evaluation(steering, backbone, batches=1000):
                for _ in range(3):
                    short = compute_steered_features(backbone, steering, inputs)
                    assert torch.allclose(short, whole, rtol=1e-9, atol=1e-12)
            assert steering.compute_signals_of_evaluation is None
    assert composed == [torch.float64] * 2


def test_an_evaluation_composes_nothing_for_few_tokens_or_under_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("composed")

    monkeypatch.setattr(folding, "compose_segments", refuse)
    backbone = randomly(BACKBONES["vit"]())
    steering, inputs = Steering(backbone).double(), example(backbone)
    with fold_during_evaluation(steering, backbone, batches=1000):
        compute_steered_features(backbone, steering, inputs).sum().backward()
        with torch.no_grad(), pytest.raises(AssertionError, match="composed"):
            compute_steered_features(backbone, steering, inputs)
    monkeypatch.setattr(folding, "MIN_EVALUATED_TOKENS_PER_CHANNEL", 1e9)
    with torch.no_grad(), fold_during_evaluation(steering, backbone, batches=1000):
        compute_steered_features(backbone, steering, inputs)
    with pytest.raises(RuntimeError, match="stop"), fold_during_evaluation(steering, backbone, batches=1):
        raise RuntimeError("stop")
    assert steering.compute_signals_of_evaluation is None
