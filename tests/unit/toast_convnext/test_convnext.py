"""What is ConvNeXt's own: deconvolutions with Lite and least squares, and sizes that the strides do not divide."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toast_cli import registry
from toast_cli.backbones.base import Backbone, Trace
from toast_cli.model.model import BackboneSnapshot, Model, count_elements
from toast_cli.steering.least_squares import RIDGE, initialize_least_squares
from toast_cli.steering.lite import add_low_rank_factors
from toast_cli.steering.reconstruction import compute_reconstruction_losses
from toast_cli.steering.steering import Steering, run_two_passes
from toast_cli.tasks import classification
from toast_cli.utils.errors import ToastError, UsageError


def tiny(model: str = "test_convnext", image_size: tuple[int, int] | None = None) -> Backbone:
    torch.manual_seed(0)
    card = registry.load_backbone_card(f"convnext:{model}")
    backbone = card.build(card.options(name=card.name, weights="none", image_size=image_size))
    backbone.module.eval().requires_grad_(False)
    return backbone


def steered(backbone: Backbone) -> Steering:
    torch.manual_seed(2)
    steering = Steering(backbone)
    for parameter in steering.feedback.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return steering


@torch.no_grad()
def test_feedback_to_the_first_level_is_added_to_the_image() -> None:
    backbone, images = tiny(), torch.randn(2, 3, 64, 64)
    signal = torch.randn_like(images)
    told = backbone.run(backbone.enter(images), [signal, None, None, None])
    shown = backbone.run(backbone.enter(images + signal))
    assert torch.equal(told.hidden, shown.hidden)


@pytest.mark.parametrize("model", ["test_convnext", "convnext_atto_ols"])
@pytest.mark.parametrize("size", [(65, 64), (95, 127), (97, 66)])
@torch.no_grad()
def test_a_size_that_the_strides_do_not_divide_runs_as_the_stock_model_does(model: str, size: tuple[int, int]) -> None:
    backbone, images = tiny(model), torch.randn(2, 3, *size)
    passes = run_two_passes(backbone, steered(backbone), images)
    assert torch.equal(passes.first.pooled, backbone.stock(images))
    assert passes.similarity is not None and passes.similarity.shape[1:] == backbone.grid(images)
    assert not torch.equal(passes.last.pooled, passes.first.pooled)


@torch.no_grad()
def test_what_the_strides_leave_over_gets_no_signal_and_changes_nothing() -> None:
    backbone = tiny()
    images = torch.randn(2, 3, 64, 64)
    wider = torch.cat([images, torch.randn(2, 3, 64, 3)], dim=-1)
    steering = steered(backbone)
    assert torch.allclose(
        run_two_passes(backbone, steering, images).last.pooled,
        run_two_passes(backbone, steering, wider).last.pooled,
        atol=1e-6,
    )


@torch.no_grad()
def test_least_squares_regresses_input_patches_on_output_cells(images: Tensor) -> None:
    backbone = tiny()
    backbone.module.double()
    steering = Steering(backbone).double()
    initialize_least_squares(steering, backbone, images.split(2))
    trace = Trace(levels=True)
    backbone.run(backbone.enter(images), trace=trace)
    for A_l, level, h, o in zip(steering.feedback.A, backbone.levels, trace.inputs, trace.outputs, strict=True):
        rows = o.movedim(1, -1).flatten(0, 2)
        patches = torch.nn.functional.unfold(h, level.stride, stride=level.stride).transpose(1, 2).flatten(0, 1)
        G = rows.T @ rows
        solved = torch.linalg.inv(G + RIDGE * G.diagonal().mean() * torch.eye(len(G))) @ rows.T @ patches
        rebuilt = (rows @ solved).view(*o.movedim(1, -1).shape[:3], level.width_in, level.stride, level.stride)
        as_map = rebuilt.permute(0, 3, 1, 4, 2, 5).reshape(h.shape)
        assert torch.allclose(A_l(o), as_map, atol=1e-9)


@torch.no_grad()
def test_least_squares_rebuilds_better_than_random_where_strides_leave_something_over() -> None:
    backbone, images = tiny(), torch.randn(8, 3, 71, 66)
    trace = Trace(levels=True)
    backbone.run(backbone.enter(images), trace=trace)
    random, solved = steered(backbone), Steering(backbone)
    initialize_least_squares(solved, backbone, [images])
    before = compute_reconstruction_losses(random, trace)
    after = compute_reconstruction_losses(solved, trace)
    assert all(a < b for a, b in zip(after, before, strict=True))


@torch.no_grad()
def test_lite_puts_factors_on_every_deconvolution(images: Tensor) -> None:
    backbone = tiny()
    steering = steered(backbone)
    before = run_two_passes(backbone, steering, images.float()).last.pooled
    factors = add_low_rank_factors(steering.feedback, rank=4, alpha=1.0)
    assert torch.equal(run_two_passes(backbone, steering, images.float()).last.pooled, before)
    expected = sum(
        4 * (level.width_out + level.width_in * level.stride**2) + 4 * 2 * level.width_in for level in backbone.levels
    )
    assert count_elements(factors) == expected
    for factor in factors:
        factor.normal_(std=0.3)
    assert not torch.equal(run_two_passes(backbone, steering, images.float()).last.pooled, before)


@pytest.mark.parametrize(("settings", "millions"), [({}, 4.4), ({"train_P": False}, 3.3)])
def test_convnext_b_trains_as_many_parameters_as_the_paper_counts(settings: dict[str, bool], millions: float) -> None:
    card, method = registry.load_backbone_card("convnext_b_in21k"), registry.load_entry(registry.METHODS, "toast")
    with torch.device("meta"):
        backbone = card.build(card.options(name=card.name, weights="none"))
        adapted = method.build(method.options(**settings), backbone)
        task = classification.build_classification(
            classification.ClassificationOptions(), backbone, tuple(map(str, range(200)))
        )
    assert (
        round(
            count_elements(Model(adapted, task, BackboneSnapshot("", frozenset())).get_trained_parameters().values())
            / 1e6,
            1,
        )
        == millions
    )


def test_another_kind_of_model_is_refused_by_name() -> None:
    with pytest.raises(ToastError) as refused:
        tiny("test_vit")
    assert refused.value.code == "backbone.wrong-family"


def test_an_image_smaller_than_a_cell_is_refused() -> None:
    with pytest.raises(UsageError, match="31 × 64") as refused:
        tiny(image_size=(31, 64))
    assert refused.value.code == "backbone.image-too-small"


def test_an_unknown_model_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        tiny("convnext_tinny")
    assert "convnext_tiny" in str(caught.value.what_to_do)


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, 64, 64, dtype=torch.float64)
