"""`torch-export`: a .pt2 file that `torch.export.load` opens without toast."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.export.base import Format, Outputs, Runner, Wanted

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.storage.load_model import Loaded


def write(loaded: Loaded, wanted: Wanted, path: Path) -> None:
    """Trace the run and save the program, its metadata as extra files in it."""
    import torch

    from toast_cli.export.graph import metadata, quiet, traced

    program, whole = traced(loaded, wanted), BytesIO()
    with quiet():
        torch.export.save(program, whole, extra_files=metadata(loaded, wanted))
    # Not by torch itself: its writer ends the whole process where the disk is full.
    path.write_bytes(whole.getbuffer())


def reopen(wanted: Wanted, path: Path) -> Runner:
    """With torch alone."""
    import torch

    program = torch.export.load(path).module()

    def run(named: dict[str, Tensor]) -> Outputs:
        return program(**named)

    return run


FORMAT = Format(
    ".pt2",
    ("full",),
    write,
    reopen,
    {"float32": 1e-4, "float16": 4 * 2**-11, "bfloat16": 4 * 2**-8},  # the same kernels: a few last places
    graph=True,
    loads="torch.export.load",
)
