"""Checkpoints of a run: `last` and `best`, each a folder of safetensors and JSON that is replaced whole."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from toast_cli.errors import ToastError
from toast_cli.model import Model
from toast_cli.storage.atomic import write_json, write_tensors

WEIGHTS = "model.safetensors"
STATE = "state.json"


def save_checkpoint(checkpoints: Path, name: str, model: Model, state: dict[str, Any]) -> None:
    """Write what is trained and where training stands as `checkpoints/<name>`.

    The new folder is complete before it takes the old one's place.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=checkpoints))
    old = checkpoints / f".{name}.old"
    try:
        write_tensors(new / WEIGHTS, model.trained())
        write_json(new / STATE, state)
        final = checkpoints / name
        if final.exists():
            final.rename(old)
        new.rename(final)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(checkpoints: Path, name: str, model: Model) -> dict[str, Any]:
    """Put the weights of `checkpoints/<name>` back into the model and return the state saved with them.

    Raises:
        ToastError: there is none, or it is of another model.
    """
    # A save that was killed between its two renames has left the complete former folder under its other name.
    folder = next((place for place in (checkpoints / name, checkpoints / f".{name}.old") if _complete(place)), None)
    if folder is None:
        raise ToastError(f"There is no checkpoint '{name}' in {checkpoints}.")
    tensors = load_file(folder / WEIGHTS)
    if tensors.keys() != model.trained().keys():
        raise ToastError(
            f"The checkpoint {folder} is of another model.", "It holds other weights than this one trains."
        )
    model.load_state_dict(tensors, strict=False)
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def _complete(folder: Path) -> bool:
    return (folder / STATE).is_file()
