"""The least-squares start, against the closed form written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toast_cli.backbones.base import Trace
from toast_cli.steering.least_squares import RIDGE, initialize_least_squares
from toast_cli.steering.reconstruction import compute_reconstruction_losses
from toast_cli.steering.steering import Steering
from toast_cli.utils.errors import ToastError
from toast_vit.backbone import VitBackbone


def activations(backbone: VitBackbone, images: Tensor) -> Trace:
    trace = Trace(levels=True)
    with torch.no_grad():
        backbone.run(backbone.enter(images), trace=trace)
    return trace


def started(backbone: VitBackbone, images: Tensor, batch: int) -> Steering:
    steering = Steering(backbone).double()
    initialize_least_squares(steering, backbone, images.split(batch))
    return steering


def test_every_A_is_the_ridge_solution_over_all_tokens(tiny_vit: VitBackbone, images: Tensor) -> None:
    steering = started(tiny_vit, images, batch=3)
    trace = activations(tiny_vit, images)
    for A_l, h, o in zip(steering.feedback.A, trace.inputs, trace.outputs, strict=True):
        o, h = o.flatten(0, 1), h.flatten(0, 1)
        G = o.T @ o
        ridge = RIDGE * G.diagonal().mean() * torch.eye(len(G))
        assert torch.allclose(A_l.weight.T, torch.linalg.inv(G + ridge) @ o.T @ h, atol=1e-9)


def test_it_does_not_matter_how_the_images_are_batched(tiny_vit: VitBackbone, images: Tensor) -> None:
    one, many = started(tiny_vit, images, batch=8), started(tiny_vit, images, batch=1)
    for first, second in zip(one.parameters(), many.parameters(), strict=True):
        assert torch.allclose(first, second, atol=1e-9)


def test_it_rebuilds_inputs_better_than_the_random_start_at_every_level(tiny_vit: VitBackbone, images: Tensor) -> None:
    trace = activations(tiny_vit, images)
    random = compute_reconstruction_losses(Steering(tiny_vit).double(), trace)
    solved = compute_reconstruction_losses(started(tiny_vit, images, batch=8), trace)
    assert all(after < 0.5 * before for after, before in zip(solved, random, strict=True))


def test_B_is_zero_P_the_identity_and_xi_the_mean_direction_of_the_tokens(
    tiny_vit: VitBackbone, images: Tensor
) -> None:
    steering = started(tiny_vit, images, batch=4)
    assert all(not B_l.weight.any() for B_l in steering.feedback.B)
    assert torch.equal(steering.selection.P, torch.eye(tiny_vit.width))
    with torch.no_grad():
        z = tiny_vit.leave(tiny_vit.run(tiny_vit.enter(images))).z
    direction = (z / z.norm(dim=-1, keepdim=True)).flatten(0, 1).mean(0)
    assert torch.allclose(steering.selection.xi, direction / direction.norm(), atol=1e-9)


def test_without_an_image_it_says_so(tiny_vit: VitBackbone) -> None:
    with pytest.raises(ToastError) as refused:
        initialize_least_squares(Steering(tiny_vit), tiny_vit, [])
    assert refused.value.code == "method.no-start-images"
