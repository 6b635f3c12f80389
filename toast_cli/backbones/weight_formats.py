"""Formats of the weights of frozen linear layers in 8 or 4 bits: how they are packed, and how they are read again.

A format packs a weight `[out, in]` into tensors of whole numbers. Scales are stored by the bits of their float32, so
that neither `module.half()` nor the data type of an export rounds them.

Libraries do the arithmetic. torchao has the integer formats as functions of plain tensors, which give the same numbers
on every device. bitsandbytes has NormalFloat (Dettmers et al., QLoRA, 2023), with kernels for CPUs and GPUs.
"""

from __future__ import annotations

import logging
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from toast_cli.utils.errors import UsageError

FormatName = Literal["int8", "int4", "nf4"]

BLOCK = 64
"""Number of weights that share a scale in 4 bits."""
MIN_BLOCK = 8
"""Smallest block of int4: with a smaller one, the scales need more memory than the weights."""

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


class WeightFormat(ABC):
    """A format of weights, and the library that packs and reads them."""

    name: ClassVar[FormatName]
    module: ClassVar[str]
    requirement: ClassVar[str]

    def supports(self, out_features: int, in_features: int) -> bool:
        """Return whether weights `[out, in]` can be packed."""
        return True

    @abstractmethod
    def list_shapes(self, out_features: int, in_features: int) -> Shapes:
        """Return the shapes and data types of the packed tensors, by name."""

    @abstractmethod
    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """Pack a floating-point weight `[out, in]`."""

    @abstractmethod
    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype, rows: slice) -> Tensor:
        """Return rows of the weight of this shape, `[rows, in]`."""

    def load_library(self) -> Any:
        """Return the module of the library with the arithmetic.

        Raises:
            UsageError: It is not installed, or too old.
        """
        if (loaded := sys.modules.get(self.module)) is not None:
            return loaded
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)  # both warn of optional kernels that are not used here
        try:
            return import_module(self.module)
        except ImportError as error:
            raise UsageError(
                f"backbone.quantize={self.name} needs the package {self.module.partition('.')[0]}.",
                str(error),
                f"pip install {self.requirement}",
                code="cli.missing-package",
            ) from error
        finally:
            logging.disable(disabled)


class _IntegerFormat(WeightFormat):
    """Whole numbers with a scale for every block of a row, and a zero point if they are unsigned."""

    module = "torchao.quantization"
    requirement = '"torchao>=0.15"'
    kind: ClassVar[torch.dtype]
    limits: ClassVar[tuple[int, int]]

    def _quantize(self, weight: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the numbers `[out, in]`, and the scales and zero points `[out, in / block]`."""
        torchao = self.load_library()
        weight, shape = weight.float(), (1, block)
        symmetric = torchao.MappingType.SYMMETRIC if self.limits[0] < 0 else torchao.MappingType.ASYMMETRIC
        scale, zero = torchao.choose_qparams_affine(
            weight, symmetric, shape, self.kind, *self.limits, scale_dtype=torch.float32
        )
        numbers = torchao.quantize_affine(weight, shape, scale, zero, self.kind, *self.limits)
        return numbers, scale.reshape(len(weight), -1), zero.reshape(len(weight), -1)

    def _dequantize(self, numbers: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
        block = numbers.shape[1] // scale.shape[1]
        weight: Tensor = self.load_library().dequantize_affine(
            numbers, (1, block), scale, zero, self.kind, *self.limits, output_dtype=_to_kernel_dtype(dtype)
        )
        return weight.to(dtype)


class Int8Format(_IntegerFormat):
    """Signed 8-bit numbers with a scale for every output: `W = scale * q`, where the largest of a row is 127."""

    name = "int8"
    kind = torch.int8
    limits = (-127, 127)

    def list_shapes(self, out_features: int, in_features: int) -> Shapes:
        """Return the shapes of the numbers and the scales."""
        return {"packed": ((out_features, in_features), torch.int8), "scale": ((out_features, 1), torch.int32)}

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """Round every row to multiples of its scale."""
        numbers, scale, _ = self._quantize(weight, weight.shape[1])
        return {"packed": numbers, "scale": scale.view(torch.int32)}

    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype, rows: slice) -> Tensor:
        """Return rows."""
        return self._dequantize(packed["packed"][rows], packed["scale"][rows].view(torch.float32), None, dtype)


class Int4Format(_IntegerFormat):
    """Unsigned 4-bit numbers with a scale and a zero point for every block: `W = scale * (q - zero)`.

    A byte holds two neighbours of a row, the first in its lower half. A block is a part of a row: of 64 weights, or of
    the largest power of two that divides the row.
    """

    name = "int4"
    kind = torch.uint8
    limits = (0, 15)

    def supports(self, out_features: int, in_features: int) -> bool:
        """Return whether a row can be divided into equal blocks that are large enough."""
        return math.gcd(in_features, BLOCK) >= MIN_BLOCK

    def list_shapes(self, out_features: int, in_features: int) -> Shapes:
        """Return the shapes of the numbers, the scales and the zero points."""
        blocks = in_features // math.gcd(in_features, BLOCK)
        return {
            "packed": ((out_features, in_features // 2), torch.uint8),
            "scale": ((out_features, blocks), torch.int32),
            "zero_point": ((out_features, blocks), torch.uint8),
        }

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """Round every block to 16 numbers between its smallest and its largest weight; zero is one of them."""
        numbers, scale, zero = self._quantize(weight, math.gcd(weight.shape[1], BLOCK))
        packed = numbers[:, ::2] | numbers[:, 1::2] << 4
        return {"packed": packed, "scale": scale.view(torch.int32), "zero_point": zero.to(torch.uint8)}

    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype, rows: slice) -> Tensor:
        """Return rows."""
        pairs = packed["packed"][rows]
        numbers = torch.stack([pairs & 15, pairs >> 4], -1).flatten(1)
        return self._dequantize(numbers, packed["scale"][rows].view(torch.float32), packed["zero_point"][rows], dtype)


class NormalFloatFormat(WeightFormat):
    """4-bit NormalFloat: quantiles of the normal distribution, times the largest weight of every block of 64.

    Blocks run over the rows one after another, as in QLoRA, whose scales are not quantized a second time here. The last
    block is filled up with zeros. The library is given a row for each block: its kernel for AVX-512 mixes up the scales
    of narrower rows (0.50.2).
    """

    name = "nf4"
    module = "bitsandbytes.functional"
    requirement = '"bitsandbytes>=0.49"'

    def list_shapes(self, out_features: int, in_features: int) -> Shapes:
        """Return the shapes of the numbers, two in a byte, and the scales."""
        blocks = -(-out_features * in_features // BLOCK)
        return {"packed": ((blocks, BLOCK // 2), torch.uint8), "scale": ((blocks,), torch.int32)}

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """Round every block to the nearest quantiles."""
        flat = weight.float().flatten()
        blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        packed, state = self.load_library().quantize_4bit(blocks, blocksize=BLOCK, quant_type="nf4")
        return {"packed": packed.view(-1, BLOCK // 2), "scale": state.absmax.view(torch.int32)}

    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype, rows: slice) -> Tensor:
        """Return rows. The blocks that they touch are read."""
        begin, end = rows.start * shape[1], rows.stop * shape[1]
        blocks = slice(begin // BLOCK, -(-end // BLOCK))
        numbers, scale = packed["packed"][blocks], packed["scale"][blocks].view(torch.float32)
        functional = self.load_library()
        state = functional.QuantState(
            scale, torch.Size((len(scale), BLOCK)), blocksize=BLOCK, quant_type="nf4", dtype=_to_kernel_dtype(dtype)
        )
        weights: Tensor = functional.dequantize_4bit(numbers.reshape(-1, 1), state).flatten()
        return weights[begin - blocks.start * BLOCK :][: end - begin].view(-1, shape[1]).to(dtype)


def _to_kernel_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the data type in which the libraries compute a weight: they know none of 64 bits."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32


WEIGHT_FORMATS: Mapping[FormatName, WeightFormat] = {
    each.name: each for each in (Int8Format(), Int4Format(), NormalFloatFormat())
}
"""The formats by name."""


def require_format(name: FormatName) -> WeightFormat:
    """Return a format whose library is installed.

    Raises:
        UsageError: It is not.
    """
    WEIGHT_FORMATS[name].load_library()
    return WEIGHT_FORMATS[name]
