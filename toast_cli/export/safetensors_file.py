"""One safetensors file: the adapter, the whole model, or the backbone's weights alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.errors import ToastError
from toast_cli.export.base import Format

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from toast_cli.model import Model
    from toast_cli.storage.adapter import Loaded

TOLERANCE = {"float32": 1e-6, "float16": 5e-2, "bfloat16": 5e-1}
"""Largest difference allowed between logits before and after, in units of their standard deviation, by storage type."""


def write(loaded: Loaded, part: str, dtype: str, path: Path) -> float:
    """Write `adapter`, `full` or `backbone` in a storage type, read it back, and compare on random images.

    `backbone` holds the network's own names, to be given to `--weights`; the other two load with `--run`.

    Raises:
        ToastError: the file read back does not give the run's logits; no file is left.
    """
    import torch

    torch.manual_seed(0)
    images = loaded.model.backbone.example(4)
    with torch.no_grad():
        before = loaded.model(images)
    # Written beside its destination and moved there only once it has proved itself.
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        candidate = Path(folder) / path.name
        _write(loaded, part, getattr(torch, dtype), candidate)
        with torch.no_grad():
            after = _read_back(loaded, part, candidate)(images)
        difference = float((after - before).abs().max())
        allowed = TOLERANCE[dtype] * max(1.0, float(before.std()))
        if not difference <= allowed:
            raise ToastError(
                f"The export to {path} does not give the run's logits back.",
                f"The largest difference is {difference:.3g}, {allowed:.3g} is allowed.",
                "Use --dtype float32.",
            )
        candidate.replace(path)
    return difference


def _write(loaded: Loaded, part: str, dtype: torch.dtype, path: Path) -> None:
    from toast_cli.storage.adapter import save_file
    from toast_cli.storage.atomic import write_tensors

    if part == "backbone":
        state: dict[str, Tensor] = loaded.model.backbone.module.state_dict()
        write_tensors(path, {name: _cast(tensor, dtype) for name, tensor in state.items()}, {"format": "pt"})
    else:
        save_file(
            path, loaded.model, loaded.config, with_backbone=part == "full", cast=lambda tensor: _cast(tensor, dtype)
        )


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _read_back(loaded: Loaded, part: str, path: Path) -> Model:
    import copy

    from safetensors.torch import load_file

    from toast_cli.storage.adapter import load

    if part != "backbone":
        return load(path, loaded.recipe.backbone.weights).model
    model = copy.deepcopy(loaded.model)
    model.adapted.network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return model


FORMAT = Format(".safetensors", ("adapter", "full", "backbone"), write)
