"""One safetensors file: the adapter, the whole model, or the backbone's weights alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.errors import ToastError
from toast_cli.export.base import Format

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from toast_cli.storage.adapter import Loaded

TOLERANCE = {"float32": 1e-5, "float16": 5e-2, "bfloat16": 5e-1}
"""Largest difference allowed between outputs, in units of their standard deviation, by storage type."""


def write(loaded: Loaded, part: str, dtype: str, path: Path) -> float:
    """Write `adapter`, `full` or `backbone` in a storage type, read it back, and compare on random input.

    `backbone` holds the network's own names, to be given to `--weights`, with low-rank factors worked into its weights;
    the other two load with `--run`.

    Raises:
        UsageError: what PEFT put into the backbone cannot be worked into its weights.
        ToastError: the file read back does not give the run's outputs; no file is left.
    """
    import torch

    torch.manual_seed(0)
    inputs = loaded.model.backbone.example(4)
    with torch.no_grad():
        before = _outputs(loaded, part)(inputs)
    # Written beside its destination and moved there only once it has proved itself.
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        candidate = Path(folder) / path.name
        _write(loaded, part, getattr(torch, dtype), candidate)
        with torch.no_grad():
            after = _outputs(loaded, part, candidate)(inputs)
        difference = float((after - before).abs().max())
        allowed = TOLERANCE[dtype] * max(1.0, float(before.std()))
        if not difference <= allowed:
            raise ToastError(
                f"The export to {path} does not give the run's outputs back.",
                f"The largest difference is {difference:.3g}, {allowed:.3g} is allowed.",
                "Use --dtype float32.",
            )
        candidate.replace(path)
    return difference


def _write(loaded: Loaded, part: str, dtype: torch.dtype, path: Path) -> None:
    from toast_cli.model import plain_network
    from toast_cli.storage.adapter import save_file
    from toast_cli.storage.atomic import write_tensors

    if part == "backbone":
        tensors = plain_network(loaded.model)
        write_tensors(path, {name: _cast(tensor, dtype) for name, tensor in tensors.items()}, {"format": "pt"})
    else:
        save_file(
            path, loaded.model, loaded.config, with_backbone=part == "full", cast=lambda tensor: _cast(tensor, dtype)
        )


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _outputs(loaded: Loaded, part: str, file: Path | None = None) -> Callable[[Any], Tensor]:
    """What is compared, of the run or of the file: the model's logits, or the features of the backbone alone."""
    from toast_cli import registry
    from toast_cli.steering.steering import one_pass
    from toast_cli.storage.adapter import load

    if part != "backbone":
        return loaded.model if file is None else load(file, loaded.recipe.backbone.weights).model
    backbone = loaded.model.backbone
    if file is not None:
        options = loaded.recipe.backbone.model_copy(update={"weights": str(file)})
        backbone = registry.backbone_card(options.name).build(options)
        backbone.module.eval()
    return lambda inputs: one_pass(backbone, inputs).last.pooled


FORMAT = Format(".safetensors", ("adapter", "full", "backbone"), write)
