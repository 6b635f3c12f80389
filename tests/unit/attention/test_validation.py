"""A map that is not what the model attends with is an error, in any family, and the model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tests.backbones import BACKBONES, example, randomly
from tests.scenes import demo_model, scenes, viewer_of
from toast_cli.attention.map_validation import (
    MISMATCH_TOLERANCE,
    SAME_MAP_TOLERANCE,
    check_attention_maps,
    check_first_steered_level,
)
from toast_cli.attention.maps import AttentionRecorder, compute_attention_map, compute_attention_rollout
from toast_cli.backbones.base import Trace
from toast_cli.methods.adapted_model import AdaptedModel
from toast_cli.model.model import BackboneSnapshot, Model
from toast_cli.steering.steering import Steering, run_one_pass
from toast_cli.tasks.classification import ClassificationOptions, build_classification
from toast_cli.utils.errors import ToastError, UsageError

ATTENTIVE = ["vit", "vit, two attentions a block", "llama"]


def model_on(name: str, levels: range | None = None) -> Model:
    backbone = randomly(BACKBONES[name]())
    stock = BackboneSnapshot.from_backbone(backbone)
    steering = Steering(backbone, levels).double()
    for weight in steering.parameters():
        nn.init.normal_(weight, std=0.3)
    with torch.no_grad():  # a direction in which tokens lie, so that all of them are sent back
        seen = run_one_pass(backbone, example(backbone)).first.compared.movedim(backbone.channel_dim, -1)
        steering.selection.xi.copy_(seen.flatten(0, -2).mean(0))
    objective = build_classification(ClassificationOptions(name="classification"), backbone, ("a", "b"))
    objective.head.double()
    return Model(AdaptedModel(backbone, steering.parameters(), steering), objective, stock).eval()


class ScaledQueries(TorchFunctionMode):
    """Inside the block, fused attention computes with scores that are larger than those of its arguments."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            args = (args[0] * self.factor, *args[1:])
        return func(*args, **(kwargs or {}))


def last_level(model: Model) -> int:
    return len(model.backbone.levels) - 1


@pytest.mark.parametrize("name", ATTENTIVE)
def test_a_map_agrees_with_fused_attention_far_within_the_tolerance(name: str) -> None:
    model = model_on(name)
    look = AttentionRecorder(model).record(example(model.backbone))
    assert look.checks is not None and look.checks.mismatch is not None
    assert look.checks.mismatch < MISMATCH_TOLERANCE[torch.float64] / 1000
    assert look.checks.to_dict()["largest_difference_of_its_maps_between_passes"] == look.checks.difference == 0
    assert (look.checks.fused, look.checks.unfused, look.checks.first_block) == ((0, last_level(model)), (), 0)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_fused_attention_that_does_something_else_is_an_error(name: str) -> None:
    model = model_on(name)
    with ScaledQueries(1.7), pytest.raises(ToastError) as refused:
        AttentionRecorder(model).record(example(model.backbone))
    assert refused.value.code == "attention.map-mismatch"
    with ScaledQueries(1.7):
        AttentionRecorder(model, checked=False).record(example(model.backbone))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_in_half_precision_scores_that_are_a_fiftieth_larger_are_an_error(kind: torch.dtype) -> None:
    viewer = viewer_of(demo_model())
    images = torch.stack([viewer.transform(scene.image)[0] for scene in scenes(2)])
    with torch.autocast("cpu", kind):
        checks = viewer.recorder.record(images).checks
        assert checks is not None and checks.mismatch is not None
        assert checks.mismatch < MISMATCH_TOLERANCE[kind] / 2, "rounding alone"
        with ScaledQueries(1.02), pytest.raises(ToastError) as refused:
            viewer.recorder.record(images)
        assert refused.value.code == "attention.map-mismatch"


@pytest.mark.parametrize("wrong", [1, 2])
def test_the_maps_of_both_passes_are_held_against_fused_attention(wrong: int) -> None:
    traces = [
        Trace(attention={0: torch.eye(2)[None, None]}, mismatch={0: torch.tensor(0.5 if number == wrong else 0.0)})
        for number in (1, 2)
    ]
    with pytest.raises(ToastError) as refused:
        check_attention_maps(*traces, start=None)
    assert refused.value.code == "attention.map-mismatch"
    assert f"layer 0 in pass {wrong}" in refused.value.what


@pytest.mark.parametrize("levels", [None, range(2, 4)], ids=["full", "late"])
def test_the_first_steered_blocks_map_is_the_same_in_both_passes(levels: range | None) -> None:
    model = model_on("vit", levels)
    start = 0 if levels is None else levels.start
    look = AttentionRecorder(model, start).record(example(model.backbone))
    assert look.last is not None and torch.allclose(look.first, look.last, atol=1e-12)
    after = AttentionRecorder(model, start + 1).record(example(model.backbone))
    assert after.last is not None and not torch.allclose(after.first, after.last, atol=1e-3)


def test_a_first_block_that_differs_between_the_passes_is_an_error() -> None:
    model = model_on("vit")
    backbone = model.backbone
    again = backbone.again
    backbone.again = lambda state, inputs: again(type(state)(state.hidden.flip(-1)), inputs)  # type: ignore[method-assign]
    with pytest.raises(ToastError) as refused:
        AttentionRecorder(model).record(example(backbone))
    assert refused.value.code == "attention.map-mismatch"
    assert "layer 0" in refused.value.what


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_hides_no_other_attention(kind: torch.dtype) -> None:
    """Two hundred tokens have half a hundredth each: a difference is a share of its own row's largest number."""
    torch.manual_seed(0)
    scores = torch.randn(1, 2, 200, 200) / 2
    maps = [(scores + change * torch.randn_like(scores)).softmax(-1).to(kind) for change in (0.0, 0.001, 0.2)]
    traces = [Trace(attention={0: map}, mismatch={0: torch.zeros((), dtype=kind)}) for map in maps]
    assert check_first_steered_level(traces[0], traces[1], 0) <= SAME_MAP_TOLERANCE[kind], "what rounding does passes"
    with pytest.raises(ToastError) as refused:
        check_first_steered_level(traces[0], traces[2], 0)
    assert refused.value.code == "attention.map-mismatch"
    assert "layer 0" in refused.value.what


def test_attention_that_is_not_fused_is_not_said_to_have_been_compared() -> None:
    model = model_on("llama")
    model.backbone.module.config._attn_implementation = "eager"
    checks = AttentionRecorder(model).record(example(model.backbone)).checks
    assert checks is not None and (checks.fused, checks.mismatch, checks.unfused) == ((), None, (0, 2))
    assert checks.to_dict()["layers_not_compared_as_their_attention_is_unfused"] == [0, 2]


@pytest.mark.parametrize("name", ["vit", "llama"])
def test_looking_leaves_the_model_as_it_was(name: str) -> None:
    model = model_on(name)
    inputs = example(model.backbone)
    before = model(inputs)
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    AttentionRecorder(model, head="rollout").record(inputs)
    assert torch.equal(model(inputs), before)
    assert [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()] == hooks


class TestHeads:
    def test_one_head_the_mean_and_the_maximum(self) -> None:
        model = model_on("vit")
        backbone, inputs = model.backbone, example(model.backbone)
        trace = Trace(attention_of=frozenset({3}))
        backbone.run(backbone.enter(inputs), trace=trace)
        row = trace.attention[3][:, :, 0, 1:]
        for head, wanted in ((2, row[:, 2]), ("mean", row.mean(1)), ("max", row.amax(1))):
            found = AttentionRecorder(model, head=head).record(inputs).first.flatten(1)  # type: ignore[arg-type]
            assert torch.allclose(found, (wanted / wanted.sum(-1, keepdim=True)).float(), atol=1e-6)
        with pytest.raises(UsageError) as refused:
            AttentionRecorder(model, head=3).record(inputs)
        assert refused.value.code == "attention.unknown-head"
        assert "0 to 2" in refused.value.what_to_do

    def test_rollout_multiplies_the_levels_each_half_itself(self) -> None:
        model = model_on("vit")
        backbone, inputs = model.backbone, example(model.backbone)
        trace = Trace(attention_of=frozenset({0, 1}))
        backbone.run(backbone.enter(inputs), trace=trace)
        zero, one = (trace.attention[level].float().mean(1) for level in (0, 1))
        identity = torch.eye(zero.shape[-1])
        by_hand = (one + identity) @ (zero + identity) / 4
        assert torch.allclose(
            compute_attention_rollout([trace.attention[0].float(), trace.attention[1].float()]), by_hand, atol=1e-6
        )
        found = AttentionRecorder(model, 1, "rollout").record(inputs).first
        assert torch.allclose(found, compute_attention_map(by_hand[:, None], backbone, (4, 4)), atol=1e-6)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_strength_zero_is_the_plain_backbone_and_one_changes_nothing(name: str) -> None:
    model = model_on(name)
    steering, inputs = model.adapted.steering, example(model.backbone)
    assert steering is not None
    full = model(inputs)
    steering.strength = 0.0
    assert torch.equal(model.adapted(inputs).last.pooled, model.backbone.stock(inputs))
    assert torch.allclose(model(inputs), model.compute_outputs(model.backbone.stock(inputs)), atol=1e-9)
    steering.strength = 1.0
    assert torch.equal(model(inputs), full)


@torch.no_grad()
def test_strength_scales_what_every_level_receives() -> None:
    model = model_on("vit")
    steering, inputs = model.adapted.steering, example(model.backbone)
    assert steering is not None
    one = model.adapted(inputs).signals
    steering.strength = 1.5
    stronger = model.adapted(inputs).signals
    for signal, more in zip(one, stronger, strict=True):
        assert torch.allclose(more, 1.5 * signal)
    assert torch.allclose(model(inputs), model.forward_passes(inputs)[0], atol=1e-9), (
        "both ways of running it scale alike"
    )
