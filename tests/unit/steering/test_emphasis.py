"""xi from chosen tokens: its direction, its place in selection, and that nothing of the model changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toast_cli.backbones.base import Readout
from toast_cli.steering.emphasis import compute_token_direction, replace_xi
from toast_cli.steering.folding import FoldedSteering
from toast_cli.steering.steering import Steering, run_first_pass, run_two_passes
from toast_cli.utils.errors import UsageError
from toast_vit.backbone import VitBackbone


def test_the_direction_is_the_mean_of_unit_vectors_for_tokens_and_for_maps() -> None:
    z = torch.tensor([[[5.0, 0.0], [0.0, 2.0], [-9.0, 1.0]], [[3.0, 4.0], [1.0, 1.0], [1.0, -1.0]]])
    chosen = torch.tensor([[True, True, False], [True, False, False]])
    expected = torch.tensor([[2**-0.5, 2**-0.5], [0.6, 0.8]])
    torch.testing.assert_close(compute_token_direction(Readout(z, z, z), chosen), expected)
    maps = z.transpose(1, 2).unflatten(2, (3, 1))
    got = compute_token_direction(Readout(maps, maps, maps), chosen.unflatten(1, (3, 1)), channel_dim=1)
    torch.testing.assert_close(got, expected)


def test_a_sample_without_chosen_tokens_is_an_error() -> None:
    z = torch.randn(2, 3, 4)
    with pytest.raises(UsageError, match="No token is selected"):
        compute_token_direction(Readout(z, z, z), torch.tensor([[True, False, False], [False, False, False]]))


def test_each_sample_is_compared_with_its_own_xi_and_the_trained_one_returns(
    tiny_vit: VitBackbone, images: Tensor
) -> None:
    steering = Steering(tiny_vit).double()
    images = images[:2]
    before = run_two_passes(tiny_vit, steering, images)
    _, first, _ = run_first_pass(tiny_vit, steering.levels, images)
    assert before.similarity is not None
    chosen = torch.zeros_like(before.similarity, dtype=torch.bool)
    chosen[0, 3], chosen[1, 7] = True, True
    with replace_xi(steering, compute_token_direction(first, chosen)):
        both = run_two_passes(tiny_vit, steering, images)
    assert both.similarity is not None
    assert float(both.similarity[0, 3].detach()) == pytest.approx(1)
    assert float(both.similarity[1, 7].detach()) == pytest.approx(1)
    assert not torch.allclose(both.last.z, before.last.z)
    for index in range(2):
        with replace_xi(steering, compute_token_direction(first, chosen)[index]):
            alone = run_two_passes(tiny_vit, steering, images[index : index + 1])
        torch.testing.assert_close(alone.last.z, both.last.z[index : index + 1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(run_two_passes(tiny_vit, steering, images).last.z, before.last.z)


def test_a_folded_model_follows_the_other_xi_as_the_unfolded_one_does(tiny_vit: VitBackbone, images: Tensor) -> None:
    steering = Steering(tiny_vit).double()
    folded = FoldedSteering(steering, tiny_vit)
    xi = torch.randn(24, dtype=torch.float64)
    with replace_xi(steering, xi), replace_xi(folded, xi):
        expected = run_two_passes(tiny_vit, steering, images).last.z
        torch.testing.assert_close(run_two_passes(tiny_vit, folded, images).last.z, expected, rtol=1e-9, atol=1e-9)


def test_a_model_without_token_selection_cannot_be_pointed(tiny_vit: VitBackbone) -> None:
    steering = Steering(tiny_vit, token_selection=False)
    with pytest.raises(UsageError, match="without token selection"), replace_xi(steering, torch.randn(24)):
        pass
