"""`onnx`: a graph that onnxruntime and its like run without torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.export.base import ExportFormat, ExportRequest, ExportRunner, Outputs
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.storage.load_model import LoadedModel

IMAGE_AXES = ("batch", "channel", "height", "width")
TEXT_AXES = ("batch", "sequence")

MAX_INLINE_BYTES = 1_800_000_000
"""Bytes beyond which weights go into a second file: an ONNX file itself ends at two gigabytes."""


def write_onnx(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> None:
    """Trace the run and translate it.

    Raises:
        UsageError: what translates is not installed.
    """
    try:
        import onnxruntime  # noqa: F401  # whoever cannot check the file should hear it before it is made
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "ONNX needs packages that are not installed.",
            str(error),
            'pip install "onnx>=1.18" "onnxscript>=0.7" "onnxruntime>=1.21"',
            code="export.missing-package",
        ) from error

    import torch

    from toast_cli.export.base import log_stage
    from toast_cli.export.graph import build_graph_metadata, suppress_exporter_logs, trace_model
    from toast_cli.export.verification_outputs import compute_outputs, to_named_inputs

    log_stage("Tracing both passes into one graph")
    program = trace_model(loaded, wanted)
    log_stage("Translating the graph into ONNX: half a minute for a ViT, longer for what is deeper")
    with torch.no_grad():
        names = list(compute_outputs(loaded.model, to_named_inputs(loaded.model.backbone.example(1)), wanted.maps))
    with suppress_exporter_logs():
        translated = torch.onnx.export(program, output_names=names, dynamo=True, verbose=False, optimize=False)
    assert translated is not None
    _simplify_graph(translated.model)
    _name_axes(translated.model)
    translated.model.metadata_props.update(build_graph_metadata(loaded, wanted))
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    translated.save(str(path), external_data=size > MAX_INLINE_BYTES)


def _simplify_graph(model: Any) -> None:
    """Compute what is constant, drop what nothing uses, and name everything once: torch 2.8 names twice.

    In place of torch's own `optimize`, whose rewriting rules take longer than all the rest and gain nothing: what
    opens the file rewrites the graph for its own kernels (ViT-Ti in onnxruntime: 24 s, and as quick to run without).
    """
    from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass
    from onnxscript.optimizer import fold_constants

    fold_constants(model)
    RemoveUnusedNodesPass()(model)
    NameFixPass()(model)


def _name_axes(model: Any) -> None:
    """Call what is free by its name, where torch writes `s77`: in the inputs and in every shape that follows."""
    import onnx_ir

    known: dict[str, str] = {}
    for taken in model.graph.inputs:
        for place, size in enumerate(taken.shape):
            if isinstance(size, onnx_ir.SymbolicDim) and size.value is not None:
                known[size.value] = (IMAGE_AXES if taken.name == "image" else TEXT_AXES)[place]
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        for place, size in enumerate(value.shape or ()):
            if isinstance(size, onnx_ir.SymbolicDim) and size.value is not None:
                named = re.sub(r"[A-Za-z_]\w*", lambda found: known.get(found[0], found[0]), size.value)
                value.shape[place] = onnx_ir.SymbolicDim(named)


def reopen_onnx(wanted: ExportRequest, path: Path) -> ExportRunner:
    """With onnxruntime, on as many threads as torch has."""
    import onnxruntime
    import torch

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    taken = {wanted_input.name for wanted_input in session.get_inputs()}

    def run(named: dict[str, Tensor]) -> Outputs:
        found = session.run(names, {name: tensor.numpy() for name, tensor in named.items() if name in taken})
        return {name: torch.from_numpy(tensor) for name, tensor in zip(names, found, strict=True)}

    return run


FORMAT = ExportFormat(
    ".onnx",
    ("full",),
    write_onnx,
    reopen_onnx,
    # Kernels of its own: about twenty last places of float16. Of bfloat16 it computes little on a CPU.
    {"float32": 1e-4, "float16": 1e-2},
    graph=True,
    loads="onnxruntime",
)
