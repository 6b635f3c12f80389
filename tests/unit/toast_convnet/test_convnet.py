"""What is the generic plugin's own: cutting networks into stages, the formats of their maps, and refusals."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from toast_cli.backbones.base import Backbone, Trace
from toast_cli.registry import load_backbone_card, wrap_model
from toast_cli.steering.steering import Steering, run_two_passes
from toast_cli.utils.errors import ToastError, UsageError


def build(name: str, **arguments: object) -> Backbone:
    torch.manual_seed(0)
    backbone = wrap_model(timm.create_model(name, num_classes=0, **arguments).eval().requires_grad_(False), "timm")
    assert backbone is not None
    return backbone


def steer(backbone: Backbone) -> Steering:
    steering = Steering(backbone)
    for parameter in steering.feedback.parameters():
        nn.init.normal_(parameter, std=0.1)
    return steering


@torch.no_grad()
def test_a_signal_enters_at_the_input_of_its_stage() -> None:
    backbone, images = build("test_resnet"), torch.randn(2, 3, 64, 64)
    net: nn.Module = backbone.module
    stages = [
        nn.Sequential(net.conv1, net.bn1, net.act1),
        nn.Sequential(net.maxpool, net.layer1),
        *(net.layer2, net.layer3, net.layer4),
    ]
    trace = Trace(levels=True)
    backbone.run(backbone.enter(images), trace=trace)
    signals = [torch.randn_like(h) for h in trace.inputs]
    by_hand: Tensor = images
    for stage, signal in zip(stages, signals, strict=True):
        by_hand = stage(by_hand + signal)
    assert torch.equal(backbone.run(backbone.enter(images), signals).hidden, by_hand)


@pytest.mark.parametrize("size", [(97, 66), (75, 127)])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_mambaout"])
@torch.no_grad()
def test_a_size_that_the_strides_do_not_divide_runs_as_the_stock_model_does(name: str, size: tuple[int, int]) -> None:
    backbone, images = build(name), torch.randn(2, 3, *size)
    passes = run_two_passes(backbone, steer(backbone), images)
    assert torch.equal(passes.first.pooled, backbone.stock(images))
    assert passes.similarity is not None and passes.similarity.shape[1:] == backbone.grid(images)
    assert not torch.equal(passes.last.pooled, passes.first.pooled)


@torch.no_grad()
def test_a_stage_that_writes_into_its_input_gets_a_copy() -> None:
    module = timm.create_model("test_resnet", num_classes=0).eval()
    module.maxpool = nn.Sequential(nn.Hardtanh(inplace=True), module.maxpool)
    backbone = wrap_model(module, "timm")
    assert backbone is not None
    trace = Trace(levels=True)
    images = torch.randn(2, 3, 64, 64)
    pooled = backbone.leave(backbone.run(backbone.enter(images), trace=trace)).pooled
    assert torch.equal(pooled, backbone.stock(images))
    assert trace.inputs[1].abs().max() > 1, "the first operation of the second stage clamps its input in place"


@pytest.mark.parametrize(
    ("name", "strides", "merged"),
    [
        ("legacy_xception", [2, 2, 2, 2, 2], False),  # timm's features are inside residual blocks
        ("hrnet_w18_small", [2, 2, 8], True),  # parallel branches between the third and the last stage
        ("dpn48b", [2, 2, 2, 2, 2], False),  # two maps between stages
        ("mambaout_femto", [4, 2, 2, 2], False),  # channels last
        ("dla34", [1, 2, 2, 2, 2, 2], False),
        ("convmixer_768_32", [7] + [1] * 31, False),
    ],
)
def test_levels_follow_the_declared_stages(name: str, strides: list[int], merged: bool) -> None:
    with torch.device("meta"):
        backbone = build(name)
    assert [level.stride for level in backbone.levels] == strides
    assert bool(backbone.notes) == merged
    assert not backbone.has_attention


def test_the_network_is_pooled_with_its_own_head() -> None:
    with torch.device("meta"):
        backbone = build("mobilenetv3_small_050")
    assert (backbone.width, backbone.head_width) == (288, 1024)


def test_low_rank_factors_are_only_for_plain_layers() -> None:
    with torch.device("meta"):
        backbone, standardized = build("resnext50_32x4d"), build("resnetv2_50x1_bit")
    assert "layer1.0.conv1" in backbone.adapter_targets
    assert "layer1.0.conv2" not in backbone.adapter_targets, "it is grouped"
    assert not standardized.adapter_targets, "its weights are standardized in each call"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nasnetalarge", "single map"), ("mixer_s32_224", "no stages"), ("crossvit_9_240", "cut into stages")],
)
def test_a_network_without_stages_of_maps_is_refused_with_the_reason(name: str, reason: str) -> None:
    with torch.device("meta"), pytest.raises(ToastError, match=reason) as refused:
        build(name)
    assert refused.value.code == "backbone.cannot-steer"


def test_a_network_of_grey_images_is_refused() -> None:
    with pytest.raises(UsageError, match="1 channel") as refused:
        build("test_resnet", in_chans=1)
    assert refused.value.code == "backbone.wrong-channels"


def test_modules_of_other_families_are_left_to_them() -> None:
    from toast_convnet.loading import wrap_convnet

    for name in ("test_vit", "test_vit_relpos", "swin_tiny_patch4_window7_224", "test_convnext", "test_maxvit"):
        with torch.device("meta"):
            assert wrap_convnet(timm.create_model(name)) is None
    assert wrap_convnet(nn.Conv2d(3, 3, 1)) is None


def test_the_short_name_has_the_size_that_it_declares() -> None:
    card = load_backbone_card("resnet50")
    with torch.device("meta"):
        module = timm.create_model("resnet50", num_classes=0)
    assert card.parameters == sum(weight.numel() for weight in module.parameters())
