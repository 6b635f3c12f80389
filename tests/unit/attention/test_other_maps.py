"""Maps that are no attention: the energy of features, and Grad-CAM, each by a second way of computing it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.backbones import BACKBONES, example, randomly
from toast_cli.attention.explanations.grad_cam import compute_grad_cam
from toast_cli.attention.feature_energy import FEATURE_ENERGY, EnergyRecorder, build_recorder
from toast_cli.attention.maps import AttentionRecorder
from toast_cli.backbones.base import Trace
from toast_cli.methods.adapted_model import AdaptedModel
from toast_cli.methods.prompted_model import PromptedModel
from toast_cli.model.model import BackboneSnapshot, Model
from toast_cli.steering.steering import Steering, run_one_pass
from toast_cli.tasks.classification import ClassificationOptions, build_classification
from toast_cli.utils.errors import ToastError, UsageError


def model_on(name: str, method: str = "toast") -> Model:
    backbone = randomly(BACKBONES[name]())
    stock = BackboneSnapshot.from_backbone(backbone)
    steering = None
    if method == "toast":
        steering = Steering(backbone).double()
        for weight in steering.parameters():
            nn.init.normal_(weight, std=0.1 if name == "convnext" else 0.3)
        with torch.no_grad():
            seen = run_one_pass(backbone, example(backbone)).first.compared.movedim(backbone.channel_dim, -1)
            steering.selection.xi.copy_(seen.flatten(0, -2).mean(0))
    adapted = PromptedModel(backbone, 3, deep=True) if method == "vpt" else AdaptedModel(backbone, [], steering)
    objective = build_classification(ClassificationOptions(name="classification"), backbone, ("a", "b", "c"))
    nn.init.normal_(objective.head.weight, std=1.0)
    objective.head.double()
    return Model(adapted.double(), objective, stock).eval()


def test_a_convnext_shows_the_energy_of_its_features_and_says_so() -> None:
    model = model_on("convnext")
    backbone, inputs = model.backbone, example(model.backbone)
    for level in (1, 3):
        recorder = build_recorder(model, level)
        assert isinstance(recorder, EnergyRecorder)
        look = recorder.record(inputs)
        trace = Trace(levels=True)
        backbone.run(backbone.enter(inputs), trace=trace)
        by_hand = trace.outputs[level].pow(2).sum(1)
        assert torch.allclose(look.first, (by_hand / by_hand.sum((1, 2), keepdim=True)).float(), atol=1e-6)
        assert look.kind == FEATURE_ENERGY and "attention" not in look.kind and look.last is not None
        assert not torch.allclose(look.first, look.last, atol=1e-4)
        assert look.similarity is not None and look.similarity.shape[1:] == backbone.grid(inputs)
    with pytest.raises(UsageError) as refused:
        build_recorder(model, head="rollout")
    assert refused.value.code == "attention.unknown-head"
    with pytest.raises(UsageError) as refused:
        AttentionRecorder(model)
    assert refused.value.code == "attention.no-maps"


def test_grad_cam_of_a_convnext_is_the_librarys_on_the_stock_model() -> None:
    from pytorch_grad_cam import GradCAM

    model = model_on("convnext", "linear")
    inputs = example(model.backbone)

    class Stocked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.head = model.backbone.module, model.head

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.module.forward_head(self.module.forward_features(images), pre_logits=True))

    found = compute_grad_cam(model, inputs)
    assert set(found) == {"grad_cam_one"}
    stocked = Stocked()
    for weight in stocked.parameters():
        weight.requires_grad_(True)
    expected = GradCAM(stocked, [stocked.module.stages[-1]])(inputs, None)
    np.testing.assert_allclose(found["grad_cam_one"].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_grad_cam_of_both_passes_is_weights_times_activations(name: str) -> None:
    model = model_on(name)
    backbone, inputs = model.backbone, example(model.backbone)
    first, last = Trace(levels=True), Trace(levels=True)
    with torch.no_grad():
        logits, passes = model.forward_passes(inputs, first, last)
    found = compute_grad_cam(model, inputs)
    assert passes.signals is not None
    for map, trace, signal in (("grad_cam_one", first, None), ("grad_cam_two", last, passes.signals[-1])):
        maps = backbone.channel_dim == 1
        tapped = (trace.outputs[-1] if maps else trace.inputs[-1]).detach().requires_grad_()
        state = backbone.enter(inputs)
        state.hidden = tapped
        end = state if maps else backbone.level(len(backbone.levels) - 1, state, signal)
        out = model.compute_outputs(backbone.leave(end).pooled)
        (gradient,) = torch.autograd.grad(out.gather(1, logits.argmax(1, keepdim=True)).sum(), tapped)
        if not maps:
            grid = backbone.grid(inputs)
            tapped, gradient = (
                part[:, backbone.prefix_tokens :].unflatten(1, grid).movedim(-1, 1) for part in (tapped, gradient)
            )
        cam = (gradient.mean((2, 3), keepdim=True) * tapped).sum(1).clamp_min(0).detach()
        low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
        small = (cam - low) / (high - low + 1e-7)
        assert small.amax() > 0.5
        # The library enlarges, and scales again: compared where both have cells.
        coarse = F.interpolate(found[map][:, None].double(), size=small.shape[-2:], mode="area")[:, 0]
        assert torch.corrcoef(torch.stack([coarse.flatten(), small.flatten()]))[0, 1] > 0.93
    assert not torch.allclose(found["grad_cam_one"], found["grad_cam_two"], atol=1e-2)


def test_grad_cam_leaves_gradients_and_modes_alone() -> None:
    model = model_on("vit")
    wanted = [weight.requires_grad for weight in model.parameters()]
    model.head.weight.grad = torch.ones_like(model.head.weight)
    compute_grad_cam(model, example(model.backbone))
    assert [weight.requires_grad for weight in model.parameters()] == wanted
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert not model.training


def test_grad_cam_that_would_show_another_model_is_an_error() -> None:
    model = model_on("vit", "vpt")  # its prompts are no part of what a trace keeps
    with pytest.raises(ToastError) as refused:
        compute_grad_cam(model, example(model.backbone))
    assert refused.value.code == "attention.grad-cam-mismatch"
