"""What is Swin's own: values steered in windows, mergings steered at their input, padded windows and odd sides."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from tests.contract.tiny_models import swin as tiny_models
from tests.timm_models import move_weights
from toast_cli import registry
from toast_cli.backbones.base import State, Trace
from toast_cli.methods.lora import LoraOptions, build_lora
from toast_cli.steering.folding import FoldedSteering
from toast_cli.steering.steering import Steering, compute_steered_features, run_one_pass, run_two_passes
from toast_cli.tasks.upernet import select_pyramid_levels
from toast_cli.utils.errors import ToastError, UsageError
from toast_swin.backbone import SwinBackbone
from toast_swin.windows import partition_windows

KINDS = [name.partition(":")[2] for name in tiny_models.MODELS]


def build(name: str, **settings: Any) -> SwinBackbone:
    torch.manual_seed(0)
    backbone = registry.wrap_model(timm.create_model(name, num_classes=0, **settings), library="timm")
    assert isinstance(backbone, SwinBackbone)
    return move_weights(backbone)


def steer(backbone: SwinBackbone, images: Tensor) -> Steering:
    torch.manual_seed(2)
    steering = Steering(backbone).double()
    for parameter in steering.feedback.parameters():
        nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        steering.selection.xi.copy_(run_one_pass(backbone, images).last.compared[0, :, 0, 0])
    return steering


@contextmanager
def stock_windows(block: Any, signal: Tensor, found: list[Tensor]) -> Any:
    """Record how timm's own block cuts a map `[B, H, W, C]`."""
    stock, block.attn.forward = block.attn.forward, lambda windows, mask=None: found.append(windows) or windows
    try:
        (block._attn if hasattr(block, "_attn") else block._shifted_window_attn)(signal)
        block.attn.forward = stock
        yield
    finally:
        del block.attn.forward


class ByHand(nn.Module):
    """`Q = W_Q X, K = W_K X, V = W_V (X + X_td)` (section 3.1, step iv), in place of the fused projection."""

    def __init__(self, attention: Any, signal: Tensor) -> None:
        super().__init__()
        separate = getattr(attention, "q_bias", None) is not None
        self.bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias]) if separate else None
        self.qkv, self.signal = attention.qkv, signal

    def forward(self, x: Tensor) -> Tensor:
        W_Q, W_K, W_V = self.qkv.weight.chunk(3)
        biases = (self.qkv.bias if self.bias is None else self.bias).chunk(3)
        inputs = (x, x, x + self.signal)
        return torch.cat([F.linear(i, W, b) for i, W, b in zip(inputs, (W_Q, W_K, W_V), biases, strict=True)], dim=-1)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_steered_block_is_the_stock_block_with_other_values(name: str) -> None:
    backbone = build(name)
    trace = Trace(levels=True)
    backbone.run(backbone.enter(backbone.example(2).double()), trace=trace)
    for index, (merging, block) in enumerate(backbone.blocks):
        if merging is not None:
            continue
        state, signal = State(trace.inputs[index]), torch.randn_like(trace.inputs[index])
        windows: list[Tensor] = []
        with stock_windows(block, signal.permute(0, 2, 3, 1), windows):
            pass
        assert torch.equal(windows[0], partition_windows(block, signal.permute(0, 2, 3, 1)))
        ours = backbone.level(index, state, signal).hidden
        stock, q_bias = block.attn.qkv, getattr(block.attn, "q_bias", None)
        block.attn.qkv = ByHand(block.attn, windows[0])
        if q_bias is not None:
            block.attn.q_bias = None
        by_hand = block(state.hidden.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
        block.attn.qkv = stock
        if q_bias is not None:
            block.attn.q_bias = q_bias
        assert torch.allclose(ours, by_hand, atol=1e-9, rtol=1e-9)
        assert not torch.allclose(ours, trace.outputs[index], atol=1e-3)


@torch.no_grad()
def test_a_level_with_a_merging_is_steered_at_the_input_of_the_merging() -> None:
    backbone = build("tiny_swin")
    hidden = backbone.run(backbone.enter(backbone.example(2).double()), last=2).hidden
    signal = torch.randn_like(hidden)
    assert torch.equal(
        backbone.level(2, State(hidden), signal).hidden, backbone.level(2, State(hidden + signal)).hidden
    )
    assert [(level.width_in, level.width_out, level.stride) for level in backbone.levels[1:3]] == [
        (16, 16, 1),
        (16, 32, 2),
    ]


@pytest.mark.parametrize("size", [None, (40, 24), (20, 36)])
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_all_ways_to_steer_agree_at_sizes_that_need_padding(name: str, size: tuple[int, int] | None) -> None:
    backbone = build(name) if size is None else build(name, img_size=size, depths=(2, 2, 1), num_heads=(2, 4, 8))
    images = backbone.example(2).double()
    steering = steer(backbone, images)
    passes = run_two_passes(backbone, steering, images)
    assert torch.equal(passes.first.pooled, backbone.stock(images))
    assert passes.similarity is not None and passes.similarity.shape[1:] == backbone.grid(images)
    assert not torch.allclose(passes.last.pooled, passes.first.pooled, atol=1e-3)
    folded = FoldedSteering(steering, backbone)
    for features in (
        compute_steered_features(backbone, steering, images),  # with the cached attention of the first level
        compute_steered_features(backbone, folded, images),
        run_two_passes(backbone, folded, images).last.pooled,
    ):
        assert torch.allclose(features, passes.last.pooled, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_a_model_of_any_size_is_steered_at_another_than_its_own() -> None:
    backbone = build("tiny_swin", dynamic_img_size=True)
    images = torch.randn(2, 3, 52, 24, dtype=torch.float64)
    passes = run_two_passes(backbone, steer(backbone, images), images)
    assert torch.equal(passes.first.pooled, backbone.stock(images))
    assert not torch.allclose(passes.last.pooled, passes.first.pooled, atol=1e-3)


@pytest.mark.parametrize("name", ["tiny_swin", "tiny_swinv2"])
@torch.no_grad()
def test_low_rank_factors_on_the_projection_work_with_and_without_a_signal(name: str) -> None:
    backbone = build(name)
    backbone.adapter_targets = ("qkv",)
    state = backbone.enter(backbone.example(2).double())
    before = backbone.level(0, state).hidden
    for parameter in build_lora(LoraOptions(), backbone).parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter))
    plain = backbone.level(0, state).hidden
    assert not torch.allclose(before, plain, atol=1e-3)
    assert torch.allclose(backbone.level(0, state, torch.zeros_like(state.hidden)).hidden, plain, atol=1e-9)


def test_the_bias_of_swinv2_is_in_place_after_a_failure() -> None:
    backbone = build("tiny_swinv2")
    state = backbone.enter(backbone.example(1).double())
    with pytest.raises(RuntimeError):
        backbone.level(0, state, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    assert isinstance(backbone.blocks[0][1].attn.q_bias, nn.Parameter)
    assert "forward" not in vars(backbone.blocks[0][1].attn.qkv)


def test_the_decoder_reads_the_end_of_every_stage() -> None:
    assert select_pyramid_levels(build("tiny_swin_padded")) == [1, 4, 5]


def test_windows_that_the_name_does_not_tell_leave_a_model_without_a_name() -> None:
    assert build("tiny_swinv2").origin == {"name": "timm:tiny_swinv2"}
    assert build("tiny_swinv2", img_size=48).origin == {"name": "timm:tiny_swinv2", "image_size": [48, 48]}
    module: Any = timm.create_model("tiny_swinv2", num_classes=0)
    module.set_input_size((64, 64))  # windows grow from 4 to 8
    assert registry.wrap_model(module, library="timm").origin == {"name": "timm:built-in-python"}


def test_new_weights_that_hide_signals_are_announced() -> None:
    new = registry.wrap_model(timm.create_model("tiny_swinv2", num_classes=0), library="timm")
    assert len(new.notes) == 1 and "zero" in new.notes[0]
    assert not build("tiny_swin").notes


def test_patches_that_do_not_fill_the_image_are_refused() -> None:
    with pytest.raises(UsageError) as refused:
        build("tiny_swin", img_size=51)
    assert (refused.value.code, "52" in str(refused.value.what_to_do)) == ("backbone.wrong-image-size", True)


def test_attention_without_a_projection_is_refused() -> None:
    module = SwinTransformer(img_size=32, embed_dim=16, depths=(1,), num_heads=(2,), num_classes=0)
    module.layers[0].blocks[0].attn = nn.Identity()
    with pytest.raises(ToastError) as refused:
        registry.wrap_model(module, library="timm")
    assert refused.value.code == "backbone.cannot-steer"


def test_another_kind_of_model_is_refused_by_name() -> None:
    backbone = build("tiny_swin")
    with pytest.raises(ToastError) as refused:
        SwinBackbone(timm.create_model("test_vit"), backbone.require_preprocessing())
    assert refused.value.code == "backbone.wrong-family"
