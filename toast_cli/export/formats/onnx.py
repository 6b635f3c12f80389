"""`onnx`: a graph for ONNX Runtime and other engines, without torch."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.export.base import ExportFormat, ExportRequest, ExportRunner, Outputs, QuantizationReport
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.storage.load_model import LoadedModel

IMAGE_AXES = ("batch", "channel", "height", "width")
TEXT_AXES = ("batch", "sequence")

MAX_INLINE_BYTES = 1_800_000_000
"""Size above which the weights are written to a second file. An ONNX file is limited to two gigabytes."""


def write_onnx(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> None:
    """Trace the run and convert the graph to ONNX.

    Raises:
        UsageError: A required package is not installed.
        ToastError: The network has an operation that ONNX cannot express.
    """
    try:
        import onnxruntime  # noqa: F401  # needed for the verification; fail before the export
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "ONNX export needs packages that are not installed.",
            str(error),
            'pip install "onnx>=1.18" "onnxscript>=0.7" "onnxruntime>=1.21"',
            code="cli.missing-package",
        ) from error

    import torch

    from toast_cli.export.base import log_stage
    from toast_cli.export.graph import build_graph_metadata, suppress_exporter_logs, trace_model
    from toast_cli.export.standalone_script import write_inference_script
    from toast_cli.export.verification_outputs import compute_outputs, to_named_inputs

    log_stage("Tracing both passes into one graph")
    program = trace_model(loaded, wanted)
    log_stage("Converting the graph to ONNX (half a minute for a ViT, longer for deeper models)")
    with torch.no_grad():
        names = list(compute_outputs(loaded.model, to_named_inputs(loaded.model.backbone.example(1)), wanted.maps))
    try:
        with suppress_exporter_logs():
            translated = torch.onnx.export(program, output_names=names, dynamo=True, verbose=False, optimize=False)
    except Exception as error:  # the conversion of an arbitrary network can raise anything
        cause = error.__cause__ or error
        raise ToastError(
            f"Cannot convert a {type(loaded.model.backbone.module).__name__} to ONNX.",
            f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}",
            "Use --format torch-export, safetensors or hf.",
            code="export.cannot-convert",
        ) from error
    assert translated is not None
    _simplify_graph(translated.model)
    _name_axes(translated.model)
    translated.model.metadata_props.update(build_graph_metadata(loaded, wanted))
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    translated.save(str(path), external_data=size > MAX_INLINE_BYTES)
    write_inference_script(loaded, path.parent)


def _simplify_graph(model: Any) -> None:
    """Fold constants, remove unused nodes, and make names unique (torch 2.8 has duplicates).

    This replaces torch's `optimize`, which is slow (24 s for ViT-Ti) and does not make the graph faster: ONNX Runtime
    optimizes it on loading anyway.
    """
    from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass
    from onnxscript.optimizer import fold_constants

    fold_constants(model)
    RemoveUnusedNodesPass()(model)
    NameFixPass()(model)


def _name_axes(model: Any) -> None:
    """Name the dynamic axes of the inputs and of all shapes, instead of torch's `s77`."""
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
    """Load the export with ONNX Runtime, with as many threads as torch."""
    import onnxruntime
    import torch

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    input_names = {session_input.name for session_input in session.get_inputs()}

    def run(named: dict[str, Tensor]) -> Outputs:
        outputs = session.run(names, {name: tensor.numpy() for name, tensor in named.items() if name in input_names})
        return {name: torch.from_numpy(tensor) for name, tensor in zip(names, outputs, strict=True)}

    return run


def quantize_to_int8(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> QuantizationReport:
    """Quantize a file that was written, see `quantization`, and name the type and the scheme in its metadata."""
    import onnx

    from toast_cli.export.graph import build_graph_metadata
    from toast_cli.export.graphs.quantization import quantize_graph
    from toast_cli.utils.names import format_json

    report = quantize_graph(loaded, wanted, path, reopen_onnx)
    model = onnx.load(str(path))
    known = {entry.key for entry in model.metadata_props}
    metadata = {**build_graph_metadata(loaded, wanted), "quantization": format_json(asdict(report))}
    for key in metadata.keys() - known:
        model.metadata_props.add(key=key, value=metadata[key])
    onnx.save(model, str(path))
    return report


FORMAT = ExportFormat(
    ".onnx",
    ("full",),
    write_onnx,
    reopen_onnx,
    # Different kernels: about 20 ULP in float16. ONNX Runtime has few bfloat16 kernels for CPUs.
    {"float32": 1e-4, "float16": 1e-2},
    graph=True,
    quantizes={"int8": quantize_to_int8},
    loads="onnxruntime",
)
