"""TOAST-Lite: PEFT's factors do what section 3.2 says, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from toast_cli.steering.feedback import get_base_weight
from toast_cli.steering.lite import add_low_rank_factors
from toast_cli.steering.steering import Steering, run_two_passes
from toast_vit.backbone import VitBackbone


def test_the_factors_change_nothing_until_they_are_trained(tiny_vit: VitBackbone, images: Tensor) -> None:
    steering = Steering(tiny_vit).double()
    before = run_two_passes(tiny_vit, steering, images).last.pooled
    add_low_rank_factors(steering.feedback, rank=4, alpha=1.0)
    assert torch.equal(run_two_passes(tiny_vit, steering.double(), images).last.pooled, before)


def test_trained_factors_equal_a_full_feedback_path_with_them_added_in(tiny_vit: VitBackbone, images: Tensor) -> None:
    lite, full = Steering(tiny_vit).double(), Steering(tiny_vit).double()
    full.load_state_dict(lite.state_dict())
    factors = add_low_rank_factors(lite.feedback, rank=4, alpha=1.0)
    assert len(factors) == 2 * 2 * len(tiny_vit.levels)
    lite.double()
    with torch.no_grad():
        for factor in factors:
            factor.normal_(std=0.3)
        for mine, theirs in zip(
            (*full.feedback.A, *full.feedback.B), (*lite.feedback.A, *lite.feedback.B), strict=True
        ):
            low_rank = theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight
            mine.weight.add_(0.25 * low_rank)
            assert not torch.equal(get_base_weight(theirs), mine.weight)
    ours = run_two_passes(tiny_vit, lite, images).last.z
    assert torch.allclose(ours, run_two_passes(tiny_vit, full, images).last.z, atol=1e-9)
