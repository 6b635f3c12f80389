"""`openvino`: a model of OpenVINO, `.xml` with the weights in `.bin` beside it, without torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.export.base import ExportFormat, ExportRequest, ExportRunner, Outputs
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.storage.load_model import LoadedModel

METADATA_ROOT = "toast"
"""Section of the model's information (`rt_info`) that holds its metadata."""

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
"""Settings of the CPU plugin, which otherwise computes in bfloat16 where the processor has instructions for it."""


def write_openvino(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> None:
    """Trace the run, convert the graph with OpenVINO's converter, and write labels and preprocessing into it.

    Half precision rounds the stored weights; OpenVINO computes in the precision of the device.

    Raises:
        UsageError: OpenVINO is not installed.
        ToastError: The network has an operation that OpenVINO cannot express.
    """
    try:
        import openvino
    except ImportError as error:
        raise UsageError(
            "OpenVINO export needs a package that is not installed.",
            str(error),
            'pip install "openvino>=2025.1"',
            code="cli.missing-package",
        ) from error

    from dataclasses import replace

    import torch

    from toast_cli.export.base import log_stage
    from toast_cli.export.graph import build_graph_metadata, suppress_exporter_logs, trace_model
    from toast_cli.export.standalone_script import write_inference_script
    from toast_cli.export.verification_outputs import compute_outputs, to_named_inputs

    log_stage("Tracing the run into one graph")
    program = trace_model(loaded, replace(wanted, dtype="float32"))
    with torch.no_grad():
        named = to_named_inputs(loaded.model.backbone.example(1))
        names = list(compute_outputs(loaded.model, named, wanted.maps))
    log_stage("Converting the graph to OpenVINO")
    try:
        with suppress_exporter_logs(), disable_telemetry():
            model = openvino.convert_model(program)
    except Exception as error:  # the conversion of an arbitrary network can raise anything
        raise ToastError(
            f"Cannot convert a {type(loaded.model.backbone.module).__name__} to OpenVINO.",
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "Use --format onnx, torch-export, safetensors or hf.",
            code="export.cannot-convert",
        ) from error
    for port, name in zip(model.outputs, names, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.inputs, named, strict=True):
        port.get_tensor().set_names({name})
    for name, text in build_graph_metadata(loaded, wanted).items():
        model.set_rt_info(text, [METADATA_ROOT, name])
    openvino.save_model(model, str(path), compress_to_fp16=wanted.dtype == "float16")
    write_inference_script(loaded, path.parent)


@contextmanager
def disable_telemetry() -> Iterator[None]:
    """Keep OpenVINO's converter from reporting its use to a server, which it does unless told otherwise.

    Its modules that report take a stub of OpenVINO's own inside the block, as without the package openvino-telemetry.
    """
    from openvino.tools.ovc import convert_impl, telemetry_stub

    own = [module for name, module in list(sys.modules.items()) if name.startswith(convert_impl.__package__)]
    reporting: dict[Any, Any] = {module: module.tm for module in own if hasattr(module, "tm")}
    for module in reporting:
        module.tm = telemetry_stub
    try:
        yield
    finally:
        for module, before in reporting.items():
            module.tm = before


def reopen_openvino(wanted: ExportRequest, path: Path) -> ExportRunner:
    """Load the export with OpenVINO's runtime on the CPU, with as many threads as torch."""
    import openvino
    import torch

    settings = {**EXACT, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.Core().compile_model(str(path), "CPU", settings)
    inputs = {name for port in model.inputs for name in port.get_names()}

    def run(named: dict[str, Tensor]) -> Outputs:
        found = model({name: tensor.numpy() for name, tensor in named.items() if name in inputs})
        return {port.get_any_name(): torch.from_numpy(found[port].copy()) for port in model.outputs}

    return run


FORMAT = ExportFormat(
    ".xml",
    ("full",),
    write_openvino,
    reopen_openvino,
    # Other kernels; of float16, only the stored weights are rounded, and the reference also computes in it.
    {"float32": 1e-4, "float16": 1e-2},
    graph=True,
    loads="openvino",
)
