"""`onnx`: a graph that onnxruntime and its like run without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.errors import UsageError
from toast_cli.export.base import Format, Outputs, Runner, Wanted

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.storage.adapter import Loaded

LARGEST = 1_800_000_000
"""Bytes beyond which weights go into a second file: an ONNX file itself ends at two gigabytes."""


def write(loaded: Loaded, wanted: Wanted, path: Path) -> None:
    """Trace the run and translate it.

    Raises:
        UsageError: what translates is not installed.
    """
    try:
        import onnxruntime  # noqa: F401  # whoever cannot check the file should hear it before it is made
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "ONNX needs packages that are not installed.", str(error), "pip install 'toast-cli[onnx]'"
        ) from error

    import torch

    from toast_cli.export.graphs import metadata, quiet, traced
    from toast_cli.export.outputs import by_name, outputs_of

    program = traced(loaded, wanted)
    with torch.no_grad():
        names = list(outputs_of(loaded.model, by_name(loaded.model.backbone.example(1)), wanted.maps))
    with quiet():
        translated = torch.onnx.export(program, output_names=names, dynamo=True, verbose=False)
    assert translated is not None
    translated.model.metadata_props.update(metadata(loaded, wanted))
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    translated.save(str(path), external_data=size > LARGEST)


def reopen(wanted: Wanted, path: Path) -> Runner:
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


FORMAT = Format(
    ".onnx",
    ("full",),
    write,
    reopen,
    {"float32": 1e-4, "float16": 5e-2},  # onnxruntime computes little in bfloat16 on a CPU, so it could not be proved
    graph=True,
    loads="onnxruntime",
)
