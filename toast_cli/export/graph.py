"""A run as an exported program of torch's: both passes in one graph, folded, with a batch of any size."""

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

from toast_cli.export.base import ExportRequest
from toast_cli.export.redact_paths import redact_recipe
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

if TYPE_CHECKING:
    from toast_cli.storage.load_model import LoadedModel

EXAMPLE_BATCH_SIZE = 2
"""A batch of one would be taken for a constant."""


def trace_model(loaded: LoadedModel, wanted: ExportRequest) -> ExportedProgram:
    """The run's graph.

    Raises:
        ToastError: something in the backbone cannot be traced.
    """
    model = fold_model(loaded.model) if isinstance(loaded.model.adapted.steering, Steering) else loaded.model
    model = deepcopy(model).cpu().eval().requires_grad_(False)
    named = to_named_inputs(model.backbone.example(EXAMPLE_BATCH_SIZE))
    kind = ImageGraph if "image" in named else TextGraph
    graph: ModelGraph = kind(model, getattr(torch, wanted.dtype), wanted.maps, wanted.normalize)
    free: dict[int, Any] = {0: Dim("batch")}
    if "image" not in named:
        free[1] = Dim("sequence", min=2)
    elif has_dynamic_image_size(model):
        free |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    try:
        with torch.no_grad(), suppress_exporter_logs():
            return torch.export.export(graph, (), kwargs=named, dynamic_shapes=dict.fromkeys(named, free))
    except Exception as error:  # a foreign network can defeat tracing in any way
        raise ToastError(
            f"A {type(model.backbone.module).__name__} could not be traced into a graph.",
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "Use --format safetensors or hf.",
            code="export.cannot-trace",
        ) from error


def build_graph_metadata(loaded: LoadedModel, wanted: ExportRequest) -> dict[str, str]:
    """What a graph carries besides: labels in the order of the logits, how images are prepared, and its lineage."""
    config = asdict(loaded.config)
    config["recipe"] = redact_recipe(config["recipe"])
    return {
        "labels": json.dumps(list(loaded.classes), ensure_ascii=False),
        "preprocessing": json.dumps(
            config["preprocessing"] and {**config["preprocessing"], **_get_resize_options(loaded)}
        ),
        "normalization": "inside: pixels in 0..1" if wanted.normalize else "outside: pixels by mean and std",
        "toast": json.dumps(config, ensure_ascii=False),
    }


def _get_resize_options(loaded: LoadedModel) -> dict[str, Any]:
    """What the run's recipe says of the resizing before the crop, where it is not what `crop_pct` says."""
    images = loaded.recipe.images
    return {"resize": images.resize, "squash": images.squash}


@contextmanager
def suppress_exporter_logs() -> Iterator[None]:
    """Keep what torch's exporters tell their own authors off the terminal."""
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
