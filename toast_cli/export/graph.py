"""Tracing of a run with torch.export: both passes in one folded graph, with a dynamic batch size."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from toast_cli.backbones.quantized_linear import dequantize_layers
from toast_cli.data.images.transforms import build_resize
from toast_cli.export.base import ExportRequest
from toast_cli.export.graphs.resize import GraphResize
from toast_cli.export.redact_paths import redact_config
from toast_cli.export.verification_outputs import (
    ImageGraph,
    ModelGraph,
    TextGraph,
    has_dynamic_image_size,
    to_named_inputs,
)
from toast_cli.model.model import fold_model
from toast_cli.steering.steering import Steering
from toast_cli.utils.errors import ToastError
from toast_cli.utils.names import format_json

if TYPE_CHECKING:
    from toast_cli.storage.load_model import LoadedModel

EXAMPLE_BATCH_SIZE = 2
"""Batch size for tracing. torch.export specializes a size of one to a constant."""


def trace_model(loaded: LoadedModel, wanted: ExportRequest) -> ExportedProgram:
    """Trace a run to a graph.

    Raises:
        ToastError: The backbone cannot be traced.
    """
    model = fold_model(loaded.model) if isinstance(loaded.model.adapted.steering, Steering) else loaded.model
    model = deepcopy(model).cpu().eval().requires_grad_(False)
    dequantize_layers(model.backbone.module, getattr(torch, wanted.dtype))
    named = to_named_inputs(model.backbone.example(EXAMPLE_BATCH_SIZE))
    kind = ImageGraph if "image" in named else TextGraph
    resize = None
    if wanted.resize:
        preprocessing = model.backbone.require_preprocessing()
        resize = GraphResize(build_resize(loaded.recipe.images, preprocessing), preprocessing)
        height, width = preprocessing.image_size  # any size that is not square
        named = {"image": torch.rand(EXAMPLE_BATCH_SIZE, 3, height + height // 2, 2 * width)}
    graph: ModelGraph = kind(model, getattr(torch, wanted.dtype), wanted.maps, wanted.normalize, resize)
    dynamic: dict[int, Any] = {0: Dim("batch")}
    if "image" not in named:
        dynamic[1] = Dim("sequence", min=2)
    elif wanted.resize or has_dynamic_image_size(model):
        dynamic |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    try:
        with torch.no_grad(), suppress_exporter_logs(), _ConvertibleOperations():
            return torch.export.export(graph, (), kwargs=named, dynamic_shapes=dict.fromkeys(named, dynamic))
    except Exception as error:  # tracing an arbitrary network can raise anything
        raise ToastError(
            f"Cannot trace a {type(model.backbone.module).__name__} to a graph.",
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "Use --format safetensors or hf.",
            code="export.cannot-trace",
        ) from error


class _ConvertibleOperations(TorchFunctionMode):
    """Replace operations that the conversion to ONNX does not know by equal ones inside the block.

    It knows fused attention on `[B, heads, N, d]` alone; Hiera's attention has windows beside the batch. Checks of all
    elements of a tensor, as in SigLIP 2 of transformers, use an operation of their own.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor._is_all_true:
            return args[0].all()
        if func is not F.scaled_dot_product_attention or len(args) != 3 or args[0].ndim <= 4:
            return func(*args, **kwargs)
        leading = args[0].shape[:-3]
        return func(*(tensor.flatten(0, -4) for tensor in args), **kwargs).unflatten(0, leading)


def build_graph_metadata(loaded: LoadedModel, wanted: ExportRequest) -> dict[str, str]:
    """Return the metadata of a graph: labels in the order of the outputs, what the outputs are, and preprocessing.

    `toast` is the run's configuration.
    """
    config = asdict(redact_config(loaded.config))
    return {
        "labels": format_json(list(loaded.classes)),
        "outputs": format_json(loaded.model.objective.describe_outputs()),
        "preprocessing": json.dumps(config["preprocessing"] and {**config["preprocessing"], **_describe_input(loaded)}),
        "normalization": "inside: pixels in 0..1" if wanted.normalize else "outside: pixels by mean and std",
        "resizing": "inside: upright RGB images of any size" if wanted.resize else "outside: resized and cropped",
        "toast": format_json(config),
    }


def _describe_input(loaded: LoadedModel) -> dict[str, Any]:
    """Return how a file becomes the image that is cropped: its size, transparency and grey values of 16 bits."""
    images = loaded.recipe.images
    resize = build_resize(images, loaded.model.backbone.require_preprocessing())
    return {
        "resize": images.resize,
        "squash": images.squash,
        "resize_rule": resize.rule,
        "resize_size": resize.size,
        "white": images.white,
        "transparency": "over white",
        "orientation": "as EXIF says",
    }


@contextmanager
def suppress_exporter_logs() -> Iterator[None]:
    """Suppress the warnings and log messages of torch's exporters within the block."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "torch.fx")]
    levels = [logger.level for logger in noisy]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(noisy, levels, strict=True):
                logger.setLevel(level)
