"""How a signal enters the attention of a staged transformer, checked against two plain runs of the stock block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backbones import randomly
from tests.contract.tiny_models import list_tiny_models
from toast_cli import registry
from toast_cli.backbones.base import Backbone, Level, State, Trace

assert list_tiny_models()  # they are registered with timm


def build(name: str, **options: object) -> Backbone:
    """Return a tiny model in float64, with weights large enough that every part matters."""
    card = registry.load_backbone_card(f"timm:{name}")
    return randomly(card.build(card.options(name=f"timm:{name}", weights="none", **options)))


def images(backbone: Backbone) -> Tensor:
    torch.manual_seed(1)
    return backbone.example(2).double()


def level_inputs(backbone: Backbone) -> list[Tensor]:
    trace = Trace(levels=True)
    backbone.run(backbone.enter(images(backbone)), trace=trace)
    return trace.inputs


@contextmanager
def fused_attention_calls(calls: list[tuple[Tensor, Tensor, Tensor]]) -> Iterator[None]:
    """Record q, k, v of every call of fused attention."""
    stock = F.scaled_dot_product_attention

    def record(q: Tensor, k: Tensor, v: Tensor, **how: object) -> Tensor:
        calls.append((q, k, v))
        return stock(q, k, v, **how)

    with patch.object(F, "scaled_dot_product_attention", record):
        yield


@contextmanager
def normed_parts(attention: nn.Module, calls: list[tuple[Tensor, ...]]) -> Iterator[None]:
    """Record pooled q, k, v of an attention that norms each of them."""
    found: list[Tensor] = []
    parts = [attention.norm_q or attention.norm_k, attention.norm_k, attention.norm_v]
    handles = [part.register_forward_hook(lambda _, __, output: found.append(output)) for part in parts]
    try:
        yield
        calls.append(tuple(found))
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def check_values(
    backbone: Backbone,
    index: int,
    norm: Callable[[Tensor], Tensor],
    record: Callable[[list[tuple[Tensor, ...]]], object] = fused_attention_calls,
) -> None:
    """Check that `V = W_V (X + s) + b_V`, and Q and K as without s, for X the normalized input of a level.

    The signal is the difference from the normalized form of another input. So the values must be those of a plain run
    on that other input, and queries and keys those of a plain run on the input itself.
    """
    hidden = level_inputs(backbone)[index]
    other = torch.randn_like(hidden)
    calls: list[tuple[Tensor, ...]] = []
    with record(calls):
        backbone.level(index, State(hidden))
    with record(calls):
        backbone.level(index, State(other))
    with record(calls):
        backbone.level(index, State(hidden), norm(other) - norm(hidden))
    count = len(calls) // 3
    for plain, of_other, steered in zip(calls[:count], calls[count : 2 * count], calls[2 * count :], strict=True):
        for ours, theirs in zip(steered[:2], plain[:2], strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
        assert torch.allclose(steered[2], of_other[2], rtol=0, atol=1e-9)
        assert not torch.allclose(steered[2], plain[2], rtol=0, atol=1e-3)


@torch.no_grad()
def check_input(backbone: Backbone, index: int) -> None:
    """Check that the signal of a level is added to the level's input."""
    hidden = level_inputs(backbone)[index]
    signal = torch.randn_like(hidden)
    steered = backbone.level(index, State(hidden), signal).hidden
    assert torch.equal(steered, backbone.level(index, State(hidden + signal)).hidden)
    assert backbone.value_weight(index) is None


def strides(backbone: Backbone) -> list[tuple[int, int, int]]:
    """Return width in, width out and stride of the levels that change one of them."""
    changes: list[Level] = [level for level in backbone.levels if level.stride > 1 or level.width_in != level.width_out]
    return [(level.width_in, level.width_out, level.stride) for level in changes]
