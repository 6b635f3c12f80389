"""What training and inference leave out changes nothing: features and gradients are those of two whole passes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tests.backbones import BACKBONES, example, randomly, vit
from toast_cli.backbones.base import Backbone
from toast_cli.backbones.lazy_signal import ValueSignal
from toast_cli.steering.composition import is_composition_cheaper
from toast_cli.steering.lite import add_low_rank_factors
from toast_cli.steering.steering import Steering, compute_steered_features, run_two_passes


def steered(backbone: Backbone, levels: range | None, rank: int | None = None) -> Steering:
    steering = Steering(backbone, levels).double()
    if rank:
        add_low_rank_factors(steering.feedback, rank, float(rank))
        steering.double()
    for weight in steering.parameters():
        nn.init.normal_(weight, std=0.2)
    return steering


def gradients(loss: Tensor, steering: Steering) -> list[Tensor]:
    trained = [weight for weight in steering.parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("way", ["sent", "composed", "composed to values"])
@pytest.mark.parametrize("name", BACKBONES)
def test_the_short_way_gives_the_features_of_two_whole_passes_and_their_gradients(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toast_cli.steering.composition.MIN_TOKENS_PER_CHANNEL", 1e9 if way == "sent" else 0)
    to_values = way == "composed to values"
    monkeypatch.setattr("toast_cli.steering.steering.is_value_composition_cheaper", lambda *_: to_values)
    for levels, checkpointing in itertools.product((None, range(2), range(1, 3)), (False, True)):
        backbone = randomly(BACKBONES[name]())
        backbone.checkpointing = checkpointing
        steering = steered(backbone, levels, rank=None if way == "sent" else 2)
        inputs = example(backbone)
        whole, short = (
            run_two_passes(backbone, steering, inputs).last.pooled,
            compute_steered_features(backbone, steering, inputs),
        )
        assert torch.allclose(short, whole, rtol=1e-9, atol=1e-12), (levels, checkpointing)
        for ours, theirs in zip(
            gradients(short.square().sum(), steering), gradients(whole.square().sum(), steering), strict=True
        ):
            close = torch.allclose(ours, theirs, rtol=1e-7, atol=1e-9 * float(theirs.abs().max()))
            assert close, (levels, checkpointing)


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_a_weaker_signal_is_as_weak_on_the_short_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toast_cli.steering.composition.MIN_TOKENS_PER_CHANNEL", 0)
    for to_values, checkpointing in itertools.product((False, True), (False, True)):
        monkeypatch.setattr("toast_cli.steering.steering.is_value_composition_cheaper", lambda *_, on=to_values: on)
        backbone = randomly(BACKBONES[name]())
        backbone.checkpointing = checkpointing
        steering = steered(backbone, None)
        steering.strength = 0.5
        inputs = example(backbone)
        whole, short = (
            run_two_passes(backbone, steering, inputs).last.pooled,
            compute_steered_features(backbone, steering, inputs),
        )
        assert torch.allclose(short, whole, rtol=1e-9, atol=1e-12), (to_values, checkpointing)


def test_an_accelerator_in_half_precision_composes_only_for_very_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices are composed in float32, where such a machine is many times as slow."""
    backbone, d = vit(), vit().width
    feedback = Steering(backbone).feedback
    with FakeTensorMode():
        few, many = (torch.empty(1, tokens * d, d, device="cuda") for tokens in (2, 24))
    for half in (False, True):
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind, half=half: half and kind == "cuda")
        assert is_composition_cheaper(feedback, backbone, range(4), few) is not half
        assert is_composition_cheaper(feedback, backbone, range(4), many)
        assert is_composition_cheaper(feedback, backbone, range(4), torch.empty(1, 2 * d, d))


@pytest.mark.parametrize(("name", "kind"), [("vit", Tensor), ("llama", ValueSignal)])
def test_many_tokens_are_sent_by_one_matrix_a_level_and_few_from_level_to_level(name: str, kind: Any) -> None:
    """The matrix ends at the values where those are few: this LLaMA has half as many as channels."""
    backbone = randomly(BACKBONES[name]())
    steering, channels = steered(backbone, None), backbone.width
    from_level_to_level: list[Any] = []
    steering.feedback.register_forward_hook(lambda *_: from_level_to_level.append(True))
    enough = 3 * channels // 2
    for tokens in (enough, enough - 1):
        z = torch.randn(1, tokens, channels, dtype=torch.float64)
        first: Any = type("Readout", (), {"z": z, "compared": z, "real": None})
        sent = steering.compute_signals_fast(first)
        assert all(isinstance(signal, kind if tokens == enough else Tensor) for signal in sent)
        assert bool(from_level_to_level) == (tokens < enough)


@torch.no_grad()
def test_the_first_steered_block_projects_once_and_the_last_attends_from_the_class_token() -> None:
    backbone = randomly(vit())
    calls: list[Any] = []
    blocks = backbone.module.blocks
    for index in (0, 3):
        blocks[index].attn.qkv.register_forward_hook(lambda _, __, out, at=index: calls.append((at, out.shape[1])))
        blocks[index].mlp.register_forward_hook(lambda _, __, out, at=index: calls.append((f"mlp {at}", out.shape[1])))
    projected = blocks[0].attn.qkv.forward
    compute_steered_features(backbone, steered(backbone, None), example(backbone))
    # The stand-in for block 1's projection is called in pass two, the projection itself is not.
    assert calls == [(0, 17), ("mlp 0", 17), (3, 17), ("mlp 3", 17), (0, 17), ("mlp 0", 17), ("mlp 3", 1)]
    assert blocks[0].attn.qkv.forward == projected and "forward" not in vars(blocks[0].attn.qkv)
    assert "forward" not in vars(blocks[3].attn)
    with FlopCounterMode(display=False) as whole:
        run_two_passes(backbone, steered(backbone, None), example(backbone))
    with FlopCounterMode(display=False) as short:
        compute_steered_features(backbone, steered(backbone, None), example(backbone))
    tokens, d = 2 * 17, backbone.width
    saved = whole.get_total_flops() - short.get_total_flops()
    assert saved >= 2 * tokens * 3 * d * d  # block 1's projection, at the least


@torch.no_grad()
def test_a_layer_put_on_the_last_projection_is_not_passed_by() -> None:
    """As PEFT does it: the projection is wrapped, and its own weight alone would be another one."""
    backbone = randomly(vit())
    steering, inputs = steered(backbone, None), example(backbone)

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    attention = backbone.module.blocks[-1].attn
    wrapped = Doubled(attention.qkv.in_features, attention.qkv.out_features).double()
    wrapped.load_state_dict(attention.qkv.state_dict())
    attention.qkv = wrapped
    whole = run_two_passes(backbone, steering, inputs).last.pooled
    assert torch.allclose(compute_steered_features(backbone, steering, inputs), whole, rtol=1e-9)
