"""Quantized weights: int8 with a scale per output channel, shared by both passes, whatever the layout of the weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toast_cli.export.base import exceeds_allowed_loss
from toast_cli.export.graphs import quantization

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def make_graph(path: Path) -> None:
    """Write a graph that multiplies an image's rows twice by one transposed weight, and then by a narrowing one."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=size).astype(np.float32) for size in ((16, 16), (16, 4)))
    nodes = [
        helper.make_node("Transpose", ["first"], ["t1"], "t1", perm=[1, 0], doc_string="a trace"),
        helper.make_node("MatMul", ["image", "t1"], ["a"], "one"),
        helper.make_node("Transpose", ["first"], ["t2"], "t2", perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t2"], ["b"], "two"),
        helper.make_node("MatMul", ["b", "second"], ["logits"], "three"),
    ]
    sizes = {"image": ["batch", 16], "logits": ["batch", 4]}
    given, made = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes[name])] for name in sizes)
    weights = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
    graph = helper.make_graph(nodes, "graph", given, made, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))


def run(path: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(["logits"], {"image": image})[0]
    return logits


@pytest.mark.parametrize("scheme", quantization.SCHEMES, ids=lambda scheme: scheme.name)
def test_every_scheme_stores_int8_and_computes_about_the_same(
    scheme: quantization.QuantizationScheme, tmp_path: Path
) -> None:
    make_graph(path := tmp_path / "x.onnx")
    images = np.random.default_rng(1).normal(size=(8, 1, 16)).astype(np.float32)
    target = tmp_path / "y.onnx"
    calibration = [torch.from_numpy(image) for image in images]
    quantization._quantize_by_scheme(scheme, path, tmp_path / "plain.onnx", target, calibration)
    expected, found = run(path, images[:, 0]), run(target, images[:, 0])
    assert 0 < np.abs(found - expected).max() < 0.1 * expected.std()
    graph = onnx.load(str(target)).graph
    large: list[Any] = [tensor for tensor in graph.initializer if np.prod(tensor.dims) >= 64]
    assert sorted(tuple(tensor.dims) for tensor in large) == [(16, 4), (16, 16)]  # one for both passes
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.INT8}
    assert not any(node.doc_string for node in graph.node)
    kinds = [node.op_type for node in graph.node]
    assert ("QuantizeLinear" in kinds) == (scheme.float_inputs != "all") and "Transpose" not in kinds


@pytest.mark.parametrize(
    ("right", "after", "too_much"), [(100, 99, False), (98, 97, False), (95, 94, False), (95, 93, True)]
)
def test_a_loss_of_exactly_one_point_is_allowed(right: int, after: int, too_much: bool) -> None:
    assert exceeds_allowed_loss(right / 100, after / 100) is too_much
