"""Frozen linear layers whose weight is stored in 8 or 4 bits, and read again in every pass (QLoRA, section 3).

The product is that of a `torch.nn.Linear` with the dequantized weight, in the forward and in the backward pass. Neither
keeps that weight: it exists while one layer runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from toast_cli.backbones.weight_formats import WEIGHT_FORMATS, FormatName
from toast_cli.utils.formatting import format_bytes


class _DequantizedProduct(torch.autograd.Function):
    """`x W^T` for some rows of a quantized `W`, which is read again for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear, rows: slice) -> Tensor:
        ctx.layer, ctx.rows = layer, rows
        return nn.functional.linear(x, layer.dequantize(x.dtype, rows))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.dequantize(gradient.dtype, ctx.rows), None, None


class QuantizedLinear(nn.Linear):
    """A linear layer with a frozen weight in one of `WEIGHT_FORMATS`; the bias, if any, is not quantized.

    `weight` is computed at every access, so writing to it changes nothing. To change it, put `to_linear()` in the place
    of the layer. It is computed in `dtype`, the data type of the weight that was quantized. The layer itself computes
    in the data type of its input, or that of autocast.

    Args:
        out_features: Number of outputs.
        in_features: Number of inputs.
        kind: Name of the format.
        dtype: Data type of `weight`.
        device: Device of the tensors, which are empty.
        bias: The bias.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        kind: FormatName,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        bias: nn.Parameter | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not that of nn.Linear, which allocates a weight
        self.in_features, self.out_features = in_features, out_features
        self.kind: FormatName = kind
        self.dtype = dtype
        for name, (shape, stored) in WEIGHT_FORMATS[kind].list_shapes(out_features, in_features).items():
            self.register_buffer(name, torch.empty(shape, dtype=stored, device=device))
        self.register_parameter("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, kind: FormatName) -> QuantizedLinear:
        """Quantize a layer, whose bias is shared. On the meta device, only shapes are computed."""
        return cls.from_weight(linear.weight.detach(), linear.bias, kind)

    @classmethod
    def from_weight(cls, weight: Tensor, bias: nn.Parameter | None, kind: FormatName) -> QuantizedLinear:
        """Quantize a weight `[out, in]`. On the meta device, only shapes are computed."""
        out_features, in_features = weight.shape
        layer = cls(out_features, in_features, kind, weight.dtype, "meta", bias)
        if weight.is_meta:
            return layer
        for name, tensor in WEIGHT_FORMATS[kind].pack(weight).items():
            layer.register_buffer(name, tensor)
        return layer

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantized weight `[out, in]`."""
        return self.dequantize(self.dtype)

    def dequantize(self, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
        """Return rows of the dequantized weight. Without data (a plan), it is empty."""
        first, end, _ = rows.indices(self.out_features)
        packed = dict(self.named_buffers(recurse=False))
        any_tensor = next(iter(packed.values()))
        if any_tensor.is_meta or isinstance(any_tensor, FakeTensor):
            return any_tensor.new_empty((end - first, self.in_features), dtype=dtype)
        shape = (self.out_features, self.in_features)
        return WEIGHT_FORMATS[self.kind].unpack(packed, shape, dtype, slice(first, end))

    def project(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return the outputs of some rows, without the bias: `[..., rows]` of an input `[..., in]`."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        product: Tensor = _DequantizedProduct.apply(x, self, rows)
        return product

    def forward(self, input: Tensor) -> Tensor:
        """Return `[..., out]` of an input `[..., in]`."""
        product = self.project(input)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def to_linear(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """Return a plain layer with the dequantized weight, which shares the bias."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=False)
        linear.weight = nn.Parameter(self.dequantize(dtype or self.dtype), requires_grad=False)
        linear.bias = self.bias
        return linear

    def extra_repr(self) -> str:
        """Return the sizes and the format."""
        return f"{super().extra_repr()}, kind={self.kind}"


def get_quantization(module: nn.Module) -> FormatName | None:
    """Return the format of the quantized layers of a network, or None if it has none."""
    return next((layer.kind for _, layer in _iterate_quantized_layers(module)), None)


def describe_quantization(module: nn.Module) -> str | None:
    """Return a sentence on the quantized layers of a network, with their size in memory; None if it has none."""
    layers = [layer for _, layer in _iterate_quantized_layers(module)]
    if not layers:
        return None
    before = format_bytes(sum(layer.in_features * layer.out_features * layer.dtype.itemsize for layer in layers))
    after = format_bytes(sum(buffer.nbytes for layer in layers for buffer in layer.buffers()))
    others = format_bytes(sum(parameter.nbytes for parameter in module.parameters()))
    return (
        f"{len(layers)} linear layers are in {layers[0].kind}: {after} instead of {before}. "
        f"The other weights take {others}."
    )


def replace_layers(module: nn.Module, replace: Callable[[Any], nn.Module], layers: dict[str, Any]) -> None:
    """Replace layers of a network, given by name, one after another, so that no two copies of all of them exist."""
    while layers:
        name, layer = layers.popitem()
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, replace(layer))
        del layer


def dequantize_layers(module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replace all quantized layers of a network by plain ones with the dequantized weights."""
    replace_layers(module, lambda layer: layer.to_linear(dtype), dict(_iterate_quantized_layers(module)))


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a network, those of quantized layers included."""
    packed = sum(layer.in_features * layer.out_features for _, layer in _iterate_quantized_layers(module))
    return packed + sum(parameter.numel() for parameter in module.parameters())


def _iterate_quantized_layers(module: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    return ((name, part) for name, part in module.named_modules() if isinstance(part, QuantizedLinear))
