"""Tiny timm models in float64, with weights moved so that every part matters, and a check of their attention maps."""

from __future__ import annotations

from typing import Any

import torch

from tests.contract.tiny_models import list_tiny_models
from toast_cli import registry
from toast_cli.backbones.base import State, Trace

assert list_tiny_models()  # they are registered with timm


def build(name: str, **options: object) -> Any:
    """Return the backbone of a tiny model, by its timm name and the options of a timm backbone."""
    torch.manual_seed(0)
    name = f"timm:{name.removeprefix('timm:')}"
    card = registry.load_backbone_card(name)
    return move_weights(card.build(card.options(name=name, weights="none", **options)))


def move_weights(backbone: Any) -> Any:
    """Add noise to every parameter, so that biases and scales that start at zero or one matter."""
    backbone.module.double().eval().requires_grad_(False)
    for parameter in backbone.module.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return backbone


@torch.no_grad()
def check_maps(backbone: Any, index: int, state: State) -> None:
    """Check the map of a steered block against that of the library's own attention without fused kernels."""
    signal = torch.randn_like(state.hidden)
    trace = Trace(attention_of=frozenset({index}))
    backbone.level(index, state, signal, trace)
    attention, stock = backbone.blocks[index].attn, []
    attention.fused_attn = False
    handle = attention.attn_drop.register_forward_pre_hook(lambda _, inputs: stock.append(inputs[0]))
    backbone.level(index, state, signal)
    handle.remove()
    assert torch.allclose(trace.attention[index], stock[0], atol=1e-9)
    assert float(trace.mismatch[index]) < 1e-9
