"""`torch-export`: a .pt2 file that `torch.export.load` opens without toast."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.export.base import ExportFormat, ExportRequest, ExportRunner, Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.storage.load_model import LoadedModel


def write_torch_export(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> None:
    """Trace the run and save the program, its metadata as extra files in it."""
    import torch

    from toast_cli.export.graph import build_graph_metadata, suppress_exporter_logs, trace_model

    program, whole = trace_model(loaded, wanted), BytesIO()
    with suppress_exporter_logs():
        torch.export.save(program, whole, extra_files=build_graph_metadata(loaded, wanted))
    # Not by torch itself: its writer ends the whole process where the disk is full.
    path.write_bytes(whole.getbuffer())


def reopen_torch_export(wanted: ExportRequest, path: Path) -> ExportRunner:
    """With torch alone."""
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
    {"float32": 1e-4, "float16": 4 * 2**-11, "bfloat16": 4 * 2**-8},  # the same kernels: a few last places
    graph=True,
    loads="torch.export.load",
)
