"""`torch-export`: a .pt2 file that `torch.export.load` loads without toast."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.export.base import ExportFormat, ExportRequest, ExportRunner, Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.storage.load_model import LoadedModel


def write_torch_export(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> None:
    """Trace the run and save the program, with the metadata as extra files."""
    import torch

    from toast_cli.export.graph import build_graph_metadata, suppress_exporter_logs, trace_model

    program, buffer = trace_model(loaded, wanted), BytesIO()
    with suppress_exporter_logs():
        torch.export.save(program, buffer, extra_files=build_graph_metadata(loaded, wanted))
    # torch's own file writer aborts the process if the disk is full.
    path.write_bytes(buffer.getbuffer())


def reopen_torch_export(wanted: ExportRequest, path: Path) -> ExportRunner:
    """Load the export with torch only."""
    import torch

    program = torch.export.load(path).module()

    def run(named: dict[str, Tensor]) -> Outputs:
        return program(**named)

    return run


FORMAT = ExportFormat(
    ".pt2",
    ("full",),
    write_torch_export,
    reopen_torch_export,
    {"float32": 1e-4, "float16": 4 * 2**-11, "bfloat16": 4 * 2**-8},  # same kernels: a few ULP
    graph=True,
    loads="torch.export.load",
)
