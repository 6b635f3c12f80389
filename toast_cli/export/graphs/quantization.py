"""Quantization of an ONNX graph to int8, calibrated on training images of the run and judged on its validation images.

Weights of the large products (`MatMul` with constant weights, `Gemm`, `Conv`) become int8 with a scale per channel, and
so do the activations that they multiply, with `QuantizeLinear` and `DequantizeLinear` around them (QDQ). Softmax,
norms and the products of two activations (attention itself) stay in float32. The schemes are tried in order until one
loses at most a point. Activations have one scale for all channels, and those of transformers have channels that are
far larger than the others, most of all before the second product of an MLP; later schemes keep more of them in float32.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from toast_cli.export.base import ExportRequest, ExportRunner, QuantizationReport, exceeds_allowed_loss, log_stage
from toast_cli.export.verification_inputs import open_verification_data, prepare_image
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from toast_cli.storage.load_model import LoadedModel

CALIBRATION_IMAGES = 128
MAX_VALIDATION_IMAGES = 1000
INT8_MAX = 127
PRODUCTS = ("MatMul", "Gemm", "Conv")
"""Operations whose weights are quantized."""

_SEED = 0


@dataclass(frozen=True)
class QuantizationScheme:
    """One way to quantize.

    Args:
        name: What becomes int8, for reports.
        float_inputs: Products whose activations stay in float32: `none`, `narrowing` (fewer outputs than inputs, as the
            second product of an MLP), or `all`.
        percentile: Share of the values of an activation within its range, in percent; None: all of them.
    """

    name: str
    float_inputs: Literal["none", "narrowing", "all"] = "none"
    percentile: float | None = None


SCHEMES = (
    QuantizationScheme("weights and activations"),
    QuantizationScheme("weights and activations, without the largest of 100,000", percentile=99.999),
    QuantizationScheme("weights, and activations except those of narrowing layers", "narrowing"),
    QuantizationScheme("weights alone", "all"),
)


def check_quantizable(loaded: LoadedModel) -> None:
    """Check that a run can be calibrated and judged.

    Raises:
        UsageError: It does not classify images.
    """
    if loaded.model.objective.target != "class" or loaded.model.backbone.preprocessing is None:
        raise UsageError(
            f"--quantize is not available for the task '{loaded.recipe.task.name}'.",
            "What it loses is measured as accuracy on validation images.",
            "Use --dtype float16.",
            code="export.cannot-quantize",
        )


def quantize_graph(
    loaded: LoadedModel, wanted: ExportRequest, path: Path, open_graph: Callable[[ExportRequest, Path], ExportRunner]
) -> QuantizationReport:
    """Quantize the ONNX file at `path` in place with the first scheme that loses at most a point, or the best one.

    Raises:
        ToastError: The run's data cannot be read.
    """
    calibration, judged, split = _load_images(loaded, wanted)
    log_stage(f"Measuring the accuracy on {len(judged)} {split} images before quantization")
    before = _measure_accuracy(open_graph(wanted, path), judged)
    size, tried, best = path.stat().st_size, dict[str, float](), -1.0
    with tempfile.TemporaryDirectory(prefix="toast-int8-") as folder:
        kept, made, plain = (Path(folder) / name for name in ("kept.onnx", "made.onnx", "plain.onnx"))
        for scheme in SCHEMES:
            log_stage(f"Quantizing: {scheme.name}")
            _quantize_by_scheme(scheme, path, plain, made, calibration)
            tried[scheme.name] = _measure_accuracy(open_graph(wanted, made), judged)
            if tried[scheme.name] > best:
                best, chosen = tried[scheme.name], scheme.name
                made.replace(kept)
            if not exceeds_allowed_loss(before, best):
                break
        path.write_bytes(kept.read_bytes())
    return QuantizationReport(
        "int8", chosen, len(calibration), split, len(judged), before, best, size, path.stat().st_size, tried
    )


def _quantize_by_scheme(
    scheme: QuantizationScheme, path: Path, plain: Path, target: Path, calibration: list[Tensor]
) -> None:
    """Write the graph at `path`, quantized by a scheme, to `target`; `plain` is where an intermediate file may be."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.load(str(path))
    _fold_transposes(model)
    _remove_comments(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in PRODUCTS and node.input[1] in weights]
    if scheme.float_inputs != "none":
        narrow = [node for node in products if scheme.float_inputs == "all" or _is_narrowing(node, weights)]
        _quantize_weights(model, narrow, weights)
    if scheme.float_inputs == "all":
        onnx.save(model, str(target))
        return
    onnx.save(model, str(plain))
    by_activations = [node.name for node in model.graph.node if node.op_type in PRODUCTS and node not in products]
    settings: dict[str, Any] = {"calibrate_method": CalibrationMethod.MinMax}
    if scheme.percentile is not None:
        settings = {
            "calibrate_method": CalibrationMethod.Percentile,
            "extra_options": {"CalibPercentile": scheme.percentile},
        }
    with _quiet_onnxruntime():
        quantize_static(
            str(plain),
            str(target),
            _CalibrationImages(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_exclude=by_activations,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QInt8,
            **settings,
        )


def _fold_transposes(model: Any) -> None:
    """Replace the transpose of a weight by a transposed weight, which onnxruntime needs to quantize it.

    torch's exporter transposes the weight of every linear layer in the graph.
    """
    from onnx import numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    renamed: dict[str, str] = {}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]:
        order = next((tuple(each.ints) for each in node.attribute if each.name == "perm"), None)
        name = f"{node.input[0]}.transposed.{'' if order is None else '.'.join(map(str, order))}"
        if name not in weights:  # both passes use the same weight
            values = numpy_helper.to_array(weights[node.input[0]]).transpose(order)
            weights[name] = numpy_helper.from_array(values.copy(), name)
        renamed[node.output[0]] = name
        graph.node.remove(node)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    _replace_initializers(graph, weights)


def _quantize_weights(model: Any, nodes: list[Any], weights: dict[str, Any]) -> None:
    """Store the weights of products as int8 with a scale per output channel, followed by a `DequantizeLinear`."""
    import numpy as np
    from onnx import helper, numpy_helper

    graph, made = model.graph, dict[str, str]()
    for node in nodes:
        name, axis = node.input[1], _get_output_axis(node, weights)
        if name not in made:
            values = numpy_helper.to_array(weights[name])
            others = tuple(dim for dim in range(values.ndim) if dim != axis)
            scale = np.maximum(np.abs(values).max(axis=others), 1e-12).astype(np.float32) / INT8_MAX
            shape = [-1 if dim == axis else 1 for dim in range(values.ndim)]
            rounded = np.clip(np.rint(values / scale.reshape(shape)), -INT8_MAX, INT8_MAX).astype(np.int8)
            made[name] = f"{name}.dequantized"
            for suffix, tensor in (("int8", rounded), ("scale", scale), ("zero", np.zeros_like(scale, dtype=np.int8))):
                weights[f"{name}.{suffix}"] = numpy_helper.from_array(tensor, f"{name}.{suffix}")
            parts = [f"{name}.{suffix}" for suffix in ("int8", "scale", "zero")]
            dequantize = helper.make_node("DequantizeLinear", parts, [made[name]], f"{name}.dequantize", axis=axis)
            graph.node.insert(0, dequantize)
        node.input[1] = made[name]
    _replace_initializers(graph, weights)


def _replace_initializers(graph: Any, weights: dict[str, Any]) -> None:
    """Store the constants that a graph uses, and no other ones."""
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in weights.items() if name in used)


def _remove_comments(model: Any) -> None:
    """Remove the stack traces and the shapes that torch's exporter notes: a tenth of a small quantized file."""
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def _get_output_axis(node: Any, weights: dict[str, Any]) -> int:
    """Return the axis of the output channels in the weight of a product."""
    if node.op_type == "MatMul":
        return len(weights[node.input[1]].dims) - 1
    transposed = any(each.name == "transB" and each.i for each in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def _is_narrowing(node: Any, weights: dict[str, Any]) -> bool:
    """Return whether a product has fewer outputs than inputs."""
    dims = weights[node.input[1]].dims
    axis = _get_output_axis(node, weights)
    return dims[axis] < math.prod(dims) // dims[axis]


class _CalibrationImages:
    """The interface of `onnxruntime.quantization.CalibrationDataReader`: one input at a time, None at the end."""

    def __init__(self, images: list[Tensor]) -> None:
        self.rest = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next input of the graph."""
        image = next(self.rest, None)
        return None if image is None else {"image": image.numpy()}


def _load_images(loaded: LoadedModel, wanted: ExportRequest) -> tuple[list[Tensor], list[tuple[Tensor, int]], str]:
    """Return training images as inputs of the graph, other images with their classes, and the name of their split.

    Other images are those of validation; without that split, training images that are not in the calibration.

    Raises:
        ToastError: The data cannot be read, or is a stream.
    """
    from toast_cli.data.base import get_split_kind

    splits = open_verification_data(loaded).splits
    if any(get_split_kind(splits[name]) != "images" for name in ("train", "val") if name in splits):
        raise ToastError(
            "--quantize needs images that can be read in any order.",
            "The data of this run is a stream.",
            "Use --dtype float16.",
            code="export.cannot-quantize",
        )
    generator = torch.Generator().manual_seed(_SEED)
    order = torch.randperm(len(splits["train"]), generator=generator).tolist()
    calibration, rest = order[:CALIBRATION_IMAGES], order[CALIBRATION_IMAGES:]
    name = "validation" if "val" in splits else "training"
    judged = list(range(len(splits["val"]))) if "val" in splits else rest
    judged = [judged[place] for place in torch.randperm(len(judged), generator=generator).tolist()]
    if not judged:
        raise ToastError(
            "--quantize needs images to judge it by.",
            f"The run has no validation split, and no more than {CALIBRATION_IMAGES} training images.",
            "Use --dtype float16.",
            code="export.cannot-quantize",
        )
    split = splits.get("val", splits["train"])

    def load(which: Any, places: list[int]) -> Iterator[tuple[Tensor, int]]:
        for place in places:
            sample = which.load(place)
            yield prepare_image(loaded, wanted, sample.image)[1], sample.label

    images = [image for image, _ in load(splits["train"], calibration)]
    return images, list(load(split, judged[:MAX_VALIDATION_IMAGES])), name


def _measure_accuracy(run: ExportRunner, images: list[tuple[Tensor, int]]) -> float:
    """Return the share of images whose most likely class is theirs."""
    right = sum(int(run({"image": image})["logits"].argmax(-1).item() == label) for image, label in images)
    return right / len(images)


@contextmanager
def _quiet_onnxruntime() -> Iterator[None]:
    """Silence onnxruntime's quantization inside the block: it prints, and its calls of `logging.info` add a handler."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
