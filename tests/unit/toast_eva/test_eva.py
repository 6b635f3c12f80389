"""Steering timm's `Eva` is the paper's equation, whatever kind of `Eva` it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.contract.tiny_models.eva import MODELS
from tests.timm_models import build
from toast_cli import registry
from toast_cli.backbones.base import State, Trace
from toast_cli.backbones.lazy_signal import ValueSignal
from toast_cli.utils.errors import ToastError

CLASS_TOKEN = ["timm:eva_tiny_dinov3_bias", "timm:eva_tiny_eva02", "timm:eva_tiny_post_norm", "timm:eva_tiny_grouped"]
"""Those that the last block computes for their class token alone."""


def rotate(x: Tensor, rope: Tensor, prefix: int, half: bool) -> Tensor:
    """Rotate pairs of channels of every patch token `[B, heads, N, c]` by its angles (Heo et al., 2403.13298)."""
    sine, cosine = rope.chunk(2, dim=-1)
    patches = x[:, :, prefix:].unflatten(-1, (2, -1) if half else (-1, 2)).movedim(-2 if half else -1, 0)
    turned = torch.stack([-patches[1], patches[0]], -2 if half else -1).flatten(-2)
    return torch.cat([x[:, :, :prefix], x[:, :, prefix:] * cosine + turned * sine], dim=2)


def compute_block(block: Any, X: Tensor, X_td: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
    """`Q = W_Q X, K = W_K X, V = W_V (X + X_td)` (section 3.1, step iv) in a block, by hand: its output and its map."""
    attn, post = block.attn, type(block).__name__ == "EvaBlockPostNorm"
    x = X if post else block.norm1(X)
    if attn.qkv is None:
        weights = [layer.weight for layer in (attn.q_proj, attn.k_proj, attn.v_proj)]
        biases: Any = [layer.bias for layer in (attn.q_proj, attn.k_proj, attn.v_proj)]
    else:
        weights, biases = list(attn.qkv.weight.chunk(3)), [None] * 3
        if attn.qkv.bias is not None:
            biases = attn.qkv.bias.chunk(3)
        elif attn.q_bias is not None:
            biases = [attn.q_bias, None, attn.v_bias]
    q, k, v = (
        F.linear(each, W, b).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
        for each, W, b in zip((x, x, x + X_td), weights, biases, strict=True)
    )
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        q, k = (rotate(each, rope, attn.num_prefix_tokens, attn.rotate_half) for each in (q, k))
    k, v = (each.repeat_interleave(attn.num_heads // each.shape[1], dim=1) for each in (k, v))
    attention = (q @ k.transpose(-2, -1) / attn.head_dim**0.5).softmax(-1)
    out = attn.proj(attn.norm((attention @ v).transpose(1, 2).flatten(2)))
    if post:
        X = X + block.norm1(out)
        return X + block.norm2(block.mlp(X)), attention
    X = X + (1 if block.gamma_1 is None else block.gamma_1) * out
    return X + (1 if block.gamma_2 is None else block.gamma_2) * block.mlp(block.norm2(X)), attention


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_steered_block_is_the_equation_of_the_paper(name: str) -> None:
    backbone = build(name)
    state = backbone.enter(backbone.example(2).double())
    signal = torch.randn_like(state.hidden)
    for index, block in enumerate(backbone.module.blocks):
        rope = state.context.shared
        rope = rope[index] if backbone.module.rope_mixed else rope
        by_hand, attention = compute_block(block, state.hidden, signal, rope)
        trace = Trace(attention_of=frozenset({index}))
        ours = backbone.level(index, state, signal, trace).hidden
        assert torch.allclose(ours, by_hand, atol=1e-9, rtol=1e-9)
        assert torch.allclose(trace.attention[index], attention, atol=1e-9, rtol=1e-9)
        at_values = ValueSignal(F.linear(signal, backbone.value_weight(index)))
        assert torch.allclose(backbone.level(index, state, at_values).hidden, by_hand, atol=1e-9, rtol=1e-9)
        kept = backbone.keep(state, index)
        assert torch.equal(backbone.level(index, kept).hidden, backbone.level(index, state).hidden)
        assert torch.allclose(backbone.level(index, kept, signal).hidden, by_hand, atol=1e-9, rtol=1e-9)
        assert not torch.allclose(ours, backbone.level(index, state).hidden, atol=1e-3)


@pytest.mark.parametrize("name", CLASS_TOKEN)
@torch.no_grad()
def test_one_query_in_the_last_block_gives_the_class_token_of_all(name: str) -> None:
    backbone = build(name)
    last = len(backbone.levels) - 1
    state = backbone.run(backbone.enter(backbone.example(2).double()), last=last)
    signal = torch.randn_like(state.hidden)
    at_values = ValueSignal(F.linear(signal, backbone.value_weight(last)))
    for sent in (None, signal, at_values):
        whole = backbone.leave(backbone.level(last, state, sent)).pooled
        assert torch.allclose(backbone.conclude(state, sent), whole, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_maps_are_those_of_unfused_attention(name: str) -> None:
    backbone = build(name)
    inputs = backbone.example(2).double()
    wanted = frozenset(range(len(backbone.levels)))
    fused, unfused, library = Trace(attention_of=wanted), Trace(attention_of=wanted), []
    backbone.run(backbone.enter(inputs), trace=fused)
    assert set(fused.mismatch) == wanted and all(float(each) < 1e-9 for each in fused.mismatch.values())
    for attention in (block.attn for block in backbone.blocks):
        attention.fused_attn = False
        attention.attn_drop.register_forward_pre_hook(lambda _, given: library.append(given[0]))
    backbone.run(backbone.enter(inputs), trace=unfused)
    assert not unfused.mismatch
    for index, own in enumerate(library):
        assert torch.equal(unfused.attention[index], own)
        assert torch.allclose(fused.attention[index], own, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_images_of_another_shape_run_as_in_timm(name: str) -> None:
    backbone = build(name, image_size=(48, 24))
    inputs = backbone.example(2).double()
    assert inputs.shape == (2, 3, 48, 24) and backbone.grid(inputs) == (6, 3)
    state = backbone.enter(inputs)
    signals = [torch.randn_like(state.hidden)] * len(backbone.levels)
    assert torch.equal(backbone.leave(backbone.run(state)).pooled, backbone.stock(inputs))
    end = backbone.run(state, signals, last=2)
    # The cache of first passes keeps the tokens alone.
    expected = backbone.run(end, signals, first=2).hidden
    assert torch.equal(backbone.run(State(end.hidden), signals, first=2).hidden, expected)


@torch.no_grad()
def test_a_dynamic_model_takes_images_of_any_size() -> None:
    backbone = build("timm:eva_tiny_dinov3")
    inputs = torch.randn(2, 3, 16, 40).double()
    state = backbone.enter(inputs)
    assert backbone.grid(inputs) == (2, 5)
    assert torch.equal(backbone.leave(backbone.run(state)).pooled, backbone.stock(inputs))
    with pytest.raises(ToastError) as refused:
        backbone.run(State(state.hidden))
    assert refused.value.code == "backbone.wrong-image-size"


def test_an_image_size_that_patches_do_not_fill_is_refused() -> None:
    with pytest.raises(ToastError) as refused:
        build("timm:eva_tiny_eva02", image_size=(36, 40))
    assert refused.value.code == "backbone.wrong-image-size"
    assert "32" in str(refused.value.what_to_do)


def test_attention_of_another_kind_is_refused() -> None:
    model = timm.create_model("eva_tiny_eva02", num_classes=0)
    model.blocks[1].attn = torch.nn.Identity()
    with pytest.raises(ToastError, match="Identity") as refused:
        registry.wrap_model(model)
    assert refused.value.code == "backbone.cannot-steer"


def save_as_meta(model: Any, path: Path, bias: float) -> None:
    """Save a model as the authors of DINOv3 name their weights (github.com/facebookresearch/dinov3)."""
    renamed = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    tensors = {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}
    for name, tensor in model.state_dict().items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        if not name.endswith(("q_bias", "v_bias")):
            tensors[name] = tensor
    for place, block in enumerate(model.blocks):
        q = torch.full((32,), bias) if block.attn.q_bias is None else block.attn.q_bias
        v = torch.full((32,), bias) if block.attn.v_bias is None else block.attn.v_bias
        tensors[f"blocks.{place}.attn.qkv.bias"] = torch.cat([q, torch.zeros(32), v])
        tensors[f"blocks.{place}.attn.qkv.bias_mask"] = torch.ones(96)
    torch.save(tensors, path)


@pytest.mark.parametrize("name", ["eva_tiny_dinov3", "eva_tiny_dinov3_bias"])
@torch.no_grad()
def test_files_of_the_authors_of_dinov3_are_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=0).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_as_meta(model, tmp_path / "dinov3.pth", bias=0.0)
    card = registry.load_backbone_card(f"timm:{name}")
    backbone = card.build(card.options(name=f"timm:{name}", weights=str(tmp_path / "dinov3.pth")))
    inputs = backbone.example(2)
    assert torch.equal(backbone.stock(inputs), model(inputs))
    assert capsys.readouterr().out == ""
