"""ConvNeXt against golden numbers made by running the authors' code: every tensor, every gradient."""

from __future__ import annotations

import pytest
import torch
from timm.models.convnext import ConvNeXt, checkpoint_filter_fn
from torch import Tensor
from torch.nn import functional as F

from tests.parity.agreement import TOLERANCE, assert_agrees, linear, read, under
from toast_cli.backbones.base import Preprocessing, Trace
from toast_cli.steering.feedback import get_base_weight
from toast_cli.steering.reconstruction import compute_reconstruction_losses
from toast_cli.steering.steering import Steering, run_two_passes
from toast_convnext.backbone import ConvNeXtBackbone


def rows(deconvolution: Tensor) -> Tensor:
    """A transposed convolution's weight `[C, C', r, r]` as ours lays it out: `[C' r r, C, 1, 1]`."""
    return deconvolution.permute(1, 2, 3, 0).flatten(0, 2)[..., None, None]


def backbone_of(weights: dict[str, Tensor], dtype: torch.dtype) -> ConvNeXtBackbone:
    module = ConvNeXt(depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), num_classes=0).double()
    foreign = ("prompt", "top_down_transform", "decoders", "head")
    ours = {name: weight for name, weight in weights.items() if not name.startswith(foreign)}
    module.load_state_dict(checkpoint_filter_fn(ours, module))
    module = module.to(dtype).eval().requires_grad_(False)
    return ConvNeXtBackbone(module, Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3))


def steering_of(weights: dict[str, Tensor], backbone: ConvNeXtBackbone, dtype: torch.dtype) -> Steering:
    steering = Steering(backbone).double()
    with torch.no_grad():
        steering.selection.xi.copy_(weights["prompt"])
        steering.selection.P.copy_(weights["top_down_transform"].T)
        for index, (A_l, B_l) in enumerate(zip(steering.feedback.A, steering.feedback.B, strict=True)):
            get_base_weight(A_l).copy_(rows(weights[f"decoders.{index}.linear.weight"]))
            get_base_weight(B_l).copy_(weights[f"decoders.{index}.linear2.weight"])
    return steering.to(dtype)


def run(weights: dict[str, Tensor], image: Tensor, labels: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything that the authors' code reported, from ours, under the names of both golden sets."""
    backbone = backbone_of(weights, dtype)
    steering, head = steering_of(weights, backbone, dtype), linear(weights, "head").to(dtype)
    trace = Trace(levels=True)
    passes = run_two_passes(backbone, steering, image.to(dtype), last_trace=trace)
    logits = head(passes.last.pooled)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    assert passes.similarity is not None and passes.selected is not None and passes.signals is not None
    reconstruction = torch.stack(compute_reconstruction_losses(steering, trace)).sum()
    ours: dict[str, Tensor | None] = {
        "first_pass_map": passes.first.z,
        "first.features": passes.first.z,
        "first.features_normed": passes.first.compared,
        "first.logits": head(passes.first.pooled),
        "similarity": passes.similarity,
        "mask": passes.similarity,
        "selected": passes.selected,
        "second_pass_map": passes.last.z,
        "second.features": passes.last.z,
        "second.pooled": passes.last.pooled,
        "logits": logits,
        "second.logits": logits,
        "loss": loss,
        "ce": loss,
        "reconstruction_loss_unweighted": reconstruction,
        "var_loss.sum": reconstruction,
        "var_loss.scaled_0.01": 0.01 * reconstruction,
        "grad.prompt": steering.selection.xi.grad,
    }
    P = steering.selection.P.grad
    ours["grad.top_down_transform"] = None if P is None else P.T
    for index, signal in enumerate(passes.signals):
        ours[f"td.{index}"] = ours[f"top_down.{index}"] = signal
    for index, (A_l, level) in enumerate(zip(steering.feedback.A, backbone.levels, strict=True)):
        gradient, r = get_base_weight(A_l).grad, level.stride
        assert gradient is not None
        patches = gradient.reshape(level.width_in, r, r, level.width_out)
        ours[f"grad.decoders.{index}.linear.weight"] = patches.permute(3, 0, 1, 2)
    return {name: tensor.detach() for name, tensor in ours.items() if tensor is not None}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_every_number_of_the_first_set_is_reproduced(dtype: torch.dtype) -> None:
    numbers, _ = read("convnext.safetensors")
    ours = run(under(numbers, "weights."), numbers["input"], torch.tensor([0, 1]), dtype)
    theirs = {name: number for name, number in numbers.items() if not name.startswith("weights.") and name != "input"}
    assert len(theirs) == 13
    for name, number in theirs.items():
        assert_agrees(name, ours[name], number, TOLERANCE[dtype])


@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_every_number_of_the_second_set_is_reproduced(precision: str) -> None:
    numbers, _ = read("convnext_seed0.safetensors")
    dtype = {"f64": torch.float64, "f32": torch.float32}[precision]
    weights = {name: weight.double() for name, weight in under(numbers, "weights.").items()}
    ours = run(weights, numbers["input.image"].double(), numbers["input.labels"], dtype)
    theirs = under(numbers, f"ref.{precision}.")
    assert len(theirs) == 19
    for name, number in theirs.items():
        assert_agrees(name, ours[name], number, TOLERANCE[dtype])
