"""TOAST-Lite: PEFT's factors do what section 3.2 says, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toast_cli.steering.feedback import get_base_weight
from toast_cli.steering.lite import add_low_rank_factors
from toast_cli.steering.lite_composition import compose_low_rank
from toast_cli.steering.steering import Steering, compute_steered_features, run_two_passes
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


def make_trained_lite(backbone: VitBackbone) -> Steering:
    steering = Steering(backbone).double()
    factors = add_low_rank_factors(steering.feedback, rank=2, alpha=1.0)
    steering.double()
    with torch.no_grad():
        for weight in [steering.selection.P, steering.selection.xi, *factors]:
            weight.normal_(std=0.3)
    return steering


def test_frozen_products_are_computed_once_and_again_after_a_frozen_weight_changes(
    tiny_vit: VitBackbone, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toast_cli.steering.composition.MIN_TOKENS_PER_CHANNEL", 0)
    steering = make_trained_lite(tiny_vit)

    def assert_exact() -> list[Tensor]:
        short = compute_steered_features(tiny_vit, steering, images)
        assert torch.allclose(short, run_two_passes(tiny_vit, steering, images).last.pooled, rtol=1e-9, atol=1e-12)
        return compose_low_rank(steering.feedback, steering._frozen_products).frozen

    first = assert_exact()
    with torch.no_grad():
        for name, weight in steering.named_parameters():
            if "lora_" in name:  # as an optimizer's step changes them
                weight.add_(0.1)
    assert all(a is b for a, b in zip(first, assert_exact(), strict=True))
    changed = {name: weight + 0.1 for name, weight in steering.state_dict().items()}
    steering.load_state_dict(changed)  # in place, as loading a checkpoint does
    second = assert_exact()
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    steering.load_state_dict({name: weight + 0.1 for name, weight in changed.items()}, assign=True)
    assert not any(torch.equal(a, b) for a, b in zip(second, assert_exact(), strict=True))


def test_steps_keep_no_graph_of_the_frozen_products(
    tiny_vit: VitBackbone, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toast_cli.steering.composition.MIN_TOKENS_PER_CHANNEL", 0)
    steering = make_trained_lite(tiny_vit)
    for _ in range(2):  # a graph kept from the first step would be freed, and fail in the second
        compute_steered_features(tiny_vit, steering, images).sum().backward()
    matrices = compose_low_rank(steering.feedback, steering._frozen_products)
    assert not any(frozen.requires_grad for frozen in matrices.frozen)
    assert all(factor.requires_grad for factor in (*matrices.Y, matrices.Z_A, *matrices.Z_B))
