"""The rows of fused projections that make values, by hand from how each attention splits its output."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests import causal_models
from toast_cli import registry
from toast_cli.backbones.lazy_signal import ValueSignal
from toast_llama.backbone import LlamaBackbone

HEADS, GROUPS, WIDTH = 4, 2, 8
"""Heads of the tiny models, their heads of keys and values, and the channels of each."""


def of_each_head(channels: Tensor) -> Tensor:
    """Query, key and value of one head after the other."""
    return channels.view(HEADS, 3, WIDTH)[:, 2]


def last_third(channels: Tensor) -> Tensor:
    return channels.chunk(3)[2]


def last_groups(channels: Tensor) -> Tensor:
    """As many values as heads of keys and values have, after all queries and keys."""
    return channels[-GROUPS * WIDTH :]


def of_each_quarter(channels: Tensor) -> Tensor:
    """CodeGen: queries, values, keys of one head, as there are as many parts as heads."""
    return channels.view(4, 3, WIDTH)[:, 1]


def of_one_head(channels: Tensor) -> Tensor:
    """All queries, one key, one value."""
    return channels[-WIDTH:]


@pytest.mark.parametrize(
    ("kind", "find_values"),
    [
        ("phi3", last_groups),
        ("gpt_neox", of_each_head),
        ("gpt_neox_japanese", of_each_head),
        ("bloom", of_each_head),
        ("persimmon", of_each_head),
        ("falcon", of_one_head),
        ("gpt2", last_third),
        ("openai-gpt", last_third),
        ("gpt_bigcode", of_one_head),
        ("mpt", last_third),
        ("codegen", of_each_quarter),
        ("jetmoe", lambda channels: channels.chunk(2)[1]),
    ],
)
@torch.no_grad()
def test_a_signal_enters_the_values_of_a_fused_projection_and_nothing_else(
    kind: str, find_values: Callable[[Tensor], Tensor]
) -> None:
    causal_models.write_model_folder(kind)
    card = registry.load_backbone_card(f"lm:{causal_models.get_model_folder(kind)}")
    backbone = card.build(card.options(name=card.name, weights="none"))
    assert isinstance(backbone, LlamaBackbone)
    backbone.module.double()
    values = backbone.decoder.steered[0].values
    layer, weight = values.layer, values.weight
    assert weight is not None
    torch.manual_seed(0)
    tokens, signal = torch.randn(2, 5, 32, dtype=torch.float64), torch.randn(2, 5, 32, dtype=torch.float64)
    plain, changed = layer(tokens), layer(tokens + signal)
    expected = plain.clone()
    channels = find_values(torch.arange(plain.shape[-1])).flatten()
    expected[..., channels] = changed[..., channels]
    for each in (signal, ValueSignal(signal @ weight.T)):
        with values.steer(each):
            steered = layer(tokens)
        assert (steered - expected).abs().max() < 1e-12
    assert torch.equal(layer(tokens), plain), "nothing stays attached"
