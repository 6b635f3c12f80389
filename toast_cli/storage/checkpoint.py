"""Checkpoints of a run: `last` and `best`, each a folder of safetensors and JSON that is replaced whole."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from toast_cli.model.model import Model
from toast_cli.storage.checksums import digest_of_file, digest_of_json
from toast_cli.utils.atomic import write_json, write_tensors
from toast_cli.utils.dtensor import put
from toast_cli.utils.errors import ToastError
from toast_cli.utils.regular_file import regular

WEIGHTS = "model.safetensors"
STATE = "state.json"
BESIDES = "training.safetensors"
"""What training needs besides the weights to go on as if it had never stopped."""
DIGESTS = "sha256"
"""Where the state keeps what its neighbours' bytes, and its own content, come to."""


def save_checkpoint(
    checkpoints: Path,
    name: str,
    trained: Mapping[str, Tensor],
    state: dict[str, Any],
    besides: Mapping[str, Tensor] | None = None,
) -> None:
    """Write what is trained, where training stands, and other tensors `besides`, as `checkpoints/<name>`.

    The new folder is complete before it takes the old one's place. The old `last` is kept under a hidden name, to go on
    from if the new one is damaged; if it is damaged itself, the one before it stays there.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=checkpoints))
    old = checkpoints / f".{name}.old"
    try:
        write_tensors(new / WEIGHTS, trained)
        if besides:
            write_tensors(new / BESIDES, besides)
        digests = {file.name: digest_of_file(file) for file in new.iterdir()} | {STATE: digest_of_json(state)}
        write_json(new / STATE, {**state, DIGESTS: digests})
        final = checkpoints / name
        if final.exists():
            if name == "last" and not _is_whole(final):
                shutil.rmtree(final, ignore_errors=True)
            else:
                _replace(final, old)
        new.rename(final)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    if name != "last":
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(checkpoints: Path, name: str, model: Model) -> dict[str, Any]:
    """Put the weights of `checkpoints/<name>` back into the model and return the state saved with them.

    Raises:
        ToastError: there is none, or it is of another model.
    """
    folder = find_checkpoint(checkpoints, name)
    if folder is None:
        raise ToastError(
            f"There is no whole checkpoint '{name}' in {checkpoints}.",
            "It is damaged: a file is missing or is not what was written." if (checkpoints / name).exists() else "",
        )
    tensors = _tensors(folder / WEIGHTS)
    if tensors.keys() != model.trained().keys():
        raise ToastError(
            f"The checkpoint {folder} is of another model.", "It holds other weights than this one trains."
        )
    put(tensors, model.trained())
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def find_checkpoint(checkpoints: Path, name: str) -> Path | None:
    """The undamaged folder of `checkpoints/<name>`, if there is one; else that of the save before."""
    return next((place for place in (checkpoints / name, checkpoints / f".{name}.old") if _is_whole(place)), None)


def is_lost(checkpoints: Path, name: str) -> bool:
    """Whether `checkpoints/<name>` was saved, and neither it nor the save before is whole."""
    saved = any((checkpoints / folder).exists() for folder in (name, f".{name}.old"))
    return saved and find_checkpoint(checkpoints, name) is None


def load_state(checkpoints: Path, name: str) -> dict[str, Any] | None:
    """Where training stood at `checkpoints/<name>`, or None if there is none."""
    folder = find_checkpoint(checkpoints, name)
    return None if folder is None else json.loads((folder / STATE).read_text(encoding="utf-8"))


def load_besides(checkpoints: Path, name: str) -> dict[str, Tensor]:
    """The tensors that were saved besides the weights; none where there are none."""
    folder = find_checkpoint(checkpoints, name)
    return _tensors(folder / BESIDES) if folder is not None and (folder / BESIDES).is_file() else {}


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ToastError(f"{path} is damaged.", str(error)) from error


def _replace(folder: Path, old: Path) -> None:
    """Give `folder` the place of `old`, which is gone only once the other stands there or is whole beside it."""
    gone = old.with_name(f"{old.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if old.exists():
        old.rename(gone)
    folder.rename(old)
    shutil.rmtree(gone, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        state = json.loads(regular(folder / STATE).read_text(encoding="utf-8"))
        digests = state.pop(DIGESTS)
        return (
            digests.pop(STATE) == digest_of_json(state)
            and {WEIGHTS} <= digests.keys() <= {WEIGHTS, BESIDES}  # no path that a state made up is read
            and all(digest_of_file(folder / name) == kept for name, kept in digests.items())
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False
