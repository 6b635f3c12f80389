"""Linear layers in 8 and 4 bits against plain ones with the dequantized weights."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from toast_cli.backbones.quantized_linear import (
    QuantizedLinear,
    count_parameters,
    dequantize_layers,
    get_quantization,
)
from toast_cli.backbones.weight_formats import WEIGHT_FORMATS, require_format
from toast_cli.utils.errors import UsageError

KINDS = list(WEIGHT_FORMATS)
# The 16 numbers of NF4, as printed in QLoRA, appendix E.
NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


def make_linear(out_features: int = 48, in_features: int = 128, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(out_features=out_features, in_features=in_features, bias=bias)


def round_weight(weight: Tensor, kind: str) -> Tensor:
    """The nearest number that a format has, computed here by its definition, in float64."""
    weight = weight.detach().double()
    if kind == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return scale * (weight / scale).round()
    if kind == "int4":
        blocks = weight.reshape(-1, math.gcd(weight.shape[1], 64))
        low, high = blocks.amin(1, keepdim=True).clamp_max(0), blocks.amax(1, keepdim=True).clamp_min(0)
        scale = (high - low) / 15
        zero = (-low / scale).round()
        return (scale * ((blocks / scale).round() + zero).clamp(0, 15) - scale * zero).reshape(weight.shape)
    flat = weight.flatten()
    blocks = torch.cat([flat, flat.new_zeros(-len(flat) % 64)]).view(-1, 64)
    largest, numbers = blocks.abs().amax(1, keepdim=True), torch.tensor(NF4, dtype=torch.float64)
    nearest = numbers[(blocks[..., None] / largest[..., None] - numbers).abs().argmin(-1)]
    return (nearest * largest).flatten()[: len(flat)].view(weight.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [24, 32, 96, 192])
def test_a_weight_is_rounded_to_the_nearest_number(kind: Any, width: int) -> None:
    linear = make_linear(in_features=width)
    layer = QuantizedLinear.from_linear(linear, kind)
    assert (layer.weight - round_weight(linear.weight, kind)).abs().max() < 1e-6
    assert torch.equal(layer.dequantize(torch.float64), layer.weight.double())
    assert (layer.dequantize(torch.bfloat16) - layer.weight).abs().max() < 0.005 * layer.weight.abs().max()


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8.3), ("int4", 4.7), ("nf4", 4.5)])
def test_a_weight_takes_its_bits(kind: Any, bits: float) -> None:
    linear = make_linear()
    layer = QuantizedLinear.from_linear(linear, kind)
    assert 8 * sum(buffer.nbytes for buffer in layer.buffers()) / linear.weight.numel() <= bits
    assert not any(buffer.is_floating_point() for buffer in layer.buffers()), "an export would round it"
    assert get_quantization(layer) == kind and get_quantization(linear) is None
    assert count_parameters(layer) == count_parameters(linear) == 48 * 128 + 48
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in layer.named_buffers()}
    assert shapes == WEIGHT_FORMATS[kind].list_shapes(48, 128), "a plan counts other tensors"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [128, 24])
def test_rows_are_those_of_the_whole_weight(kind: Any, width: int) -> None:
    layer = QuantizedLinear.from_linear(make_linear(in_features=width), kind)
    for rows in (slice(16, 48), slice(7, 30), slice(0, 1)):
        assert torch.equal(layer.dequantize(torch.float32, rows), layer.weight[rows])
    x = torch.randn(3, width)
    assert torch.allclose(layer.project(x, slice(16, 48)), layer(x)[:, 16:] - layer.bias[16:], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_products_and_gradients_are_those_of_the_dequantized_weight(kind: Any) -> None:
    network = nn.Sequential(make_linear().double(), nn.GELU(), make_linear(16, 48).double())
    for index in (0, 2):
        network[index] = QuantizedLinear.from_linear(network[index], kind)
    network.double().requires_grad_(False)
    x = torch.randn(5, 128, dtype=torch.float64, requires_grad=True)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        out = network(x)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert all(tensor.numel() < 48 * 128 for tensor in kept), "the dequantized weight is kept for the backward pass"
    dequantize_layers(network)
    assert type(network[0]) is nn.Linear and get_quantization(network) is None
    plain = network(x)
    (expected,) = torch.autograd.grad(plain.square().sum(), x)
    assert (out - plain).abs().max() < 1e-12 and (gradient - expected).abs().max() < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_other_precisions_leave_the_weights_as_they_are(kind: Any) -> None:
    layer = QuantizedLinear.from_linear(make_linear(), kind)
    before = layer.weight
    assert torch.equal(layer.bfloat16().float().weight, before)
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(2, 128, requires_grad=True)
        out = layer(x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.float32
    assert torch.allclose(x.grad[0], before.sum(0), atol=0.1)


def test_a_weight_cannot_be_replaced_unnoticed() -> None:
    layer = QuantizedLinear.from_linear(make_linear(), "int8")
    with pytest.raises((KeyError, AttributeError)):
        layer.weight = nn.Parameter(torch.zeros(48, 128))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(UsageError) as refused:
        require_format("nf4")
    assert refused.value.code == "cli.missing-package" and "bitsandbytes" in refused.value.what_to_do


def test_rows_without_equal_blocks_are_not_supported_by_int4() -> None:
    assert WEIGHT_FORMATS["int4"].supports(8, 24) and not WEIGHT_FORMATS["int4"].supports(8, 20)
    layer = QuantizedLinear.from_linear(make_linear(in_features=21), "nf4")
    assert (layer.weight - round_weight(make_linear(in_features=21).weight, "nf4")).abs().max() < 1e-6
