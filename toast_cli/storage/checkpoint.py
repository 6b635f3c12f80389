"""Checkpoints of a run: `last` and `best`, each a folder of safetensors and JSON files that is replaced as a whole."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from toast_cli.model.model import Model
from toast_cli.storage.checksums import verify_files
from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import require_regular_file, write_json, write_tensors
from toast_cli.utils.hashing import CHECKSUM_KEY, hash_file, hash_json
from toast_cli.utils.tensor_fingerprints import copy_tensors

WEIGHTS_FILE = "model.safetensors"
STATE_FILE = "state.json"
EXTRA_TENSORS_FILE = "training.safetensors"
"""The other tensors that are needed to resume training exactly where it stopped."""


def save_checkpoint(
    checkpoints: Path,
    name: str,
    trained: Mapping[str, Tensor],
    state: dict[str, Any],
    besides: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the trained tensors, the training state and other tensors (`besides`) to `checkpoints/<name>`.

    The new folder is complete before it replaces the old one. The old `last` is kept under a hidden name, to resume
    from if the new one is damaged. If the old `last` is damaged itself, the one before it is kept.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=checkpoints))
    old = checkpoints / f".{name}.old"
    try:
        write_tensors(new / WEIGHTS_FILE, trained)
        if besides:
            write_tensors(new / EXTRA_TENSORS_FILE, besides)
        digests = {file.name: hash_file(file) for file in new.iterdir()} | {STATE_FILE: hash_json(state)}
        write_json(new / STATE_FILE, {**state, CHECKSUM_KEY: digests})
        final = checkpoints / name
        if final.exists():
            if name == "last" and not _is_intact(final):
                shutil.rmtree(final, ignore_errors=True)
            else:
                _replace_folder(final, old)
        new.rename(final)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    if name != "last":
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(checkpoints: Path, name: str, model: Model) -> dict[str, Any]:
    """Load the weights of `checkpoints/<name>` into the model and return the state that was saved with them.

    Raises:
        ToastError: There is no intact checkpoint, or it is of another model.
    """
    folder = find_checkpoint(checkpoints, name)
    if folder is None:
        raise ToastError(
            f"There is no intact checkpoint '{name}' in {checkpoints}.",
            "It is damaged: a file is missing or its SHA-256 does not match." if (checkpoints / name).exists() else "",
            code="checkpoint.damaged" if (checkpoints / name).exists() else "checkpoint.missing",
        )
    tensors = _load_tensors(folder / WEIGHTS_FILE)
    if tensors.keys() != model.get_trained_parameters().keys():
        raise ToastError(
            f"The checkpoint {folder} is of another model.",
            "The names of its weights differ from those that this model trains.",
            code="checkpoint.wrong-model",
        )
    copy_tensors(tensors, model.get_trained_parameters())
    return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))


def check_checkpoint_shapes(checkpoints: Path, name: str, model: Model) -> None:
    """Check that the weights of `checkpoints/<name>` have the names and shapes of those that the model trains.

    Raises:
        ToastError: The checkpoint is of another model, for example of one with another number of classes.
    """
    folder, trained = find_checkpoint(checkpoints, name), model.get_trained_parameters()
    if folder is None:
        return
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    unlike = [key for key in shapes if key not in trained or tuple(trained[key].shape) != shapes[key]]
    missing = [key for key in trained if key not in shapes]
    if unlike or missing:
        key = (unlike or missing)[0]
        ours = tuple(trained[key].shape) if key in trained else "absent"
        raise ToastError(
            f"The checkpoint {folder} is of another model.",
            f"{key} is {shapes.get(key, 'absent')} there and {ours} here. "
            "The number of classes, for example, may have changed.",
            code="checkpoint.wrong-model",
        )


def find_checkpoint(checkpoints: Path, name: str) -> Path | None:
    """Return the folder of `checkpoints/<name>`, or that of the save before if it is damaged, or None."""
    return next((place for place in (checkpoints / name, checkpoints / f".{name}.old") if _is_intact(place)), None)


def is_checkpoint_lost(checkpoints: Path, name: str) -> bool:
    """Return whether `checkpoints/<name>` was saved, but neither it nor the save before is intact."""
    saved = any((checkpoints / folder).exists() for folder in (name, f".{name}.old"))
    return saved and find_checkpoint(checkpoints, name) is None


def load_checkpoint_state(checkpoints: Path, name: str) -> dict[str, Any] | None:
    """Return the training state of `checkpoints/<name>`, or None if there is none."""
    folder = find_checkpoint(checkpoints, name)
    return None if folder is None else json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))


def load_extra_tensors(checkpoints: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors that were saved in addition to the weights, or an empty dict."""
    folder = find_checkpoint(checkpoints, name)
    return (
        _load_tensors(folder / EXTRA_TENSORS_FILE)
        if folder is not None and (folder / EXTRA_TENSORS_FILE).is_file()
        else {}
    )


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ToastError(f"{path} is damaged.", str(error), code="checkpoint.damaged") from error


def _replace_folder(folder: Path, old: Path) -> None:
    """Move `folder` to `old`. The former `old` is removed only after the move."""
    gone = old.with_name(f"{old.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if old.exists():
        old.rename(gone)
    folder.rename(old)
    shutil.rmtree(gone, ignore_errors=True)


def _is_intact(folder: Path) -> bool:
    try:
        state = json.loads(require_regular_file(folder / STATE_FILE).read_text(encoding="utf-8"))
        digests = state.pop(CHECKSUM_KEY)
        if digests.pop(STATE_FILE) != hash_json(state) or WEIGHTS_FILE not in digests:
            return False
        verify_files(folder, digests)
        return digests.keys() <= {WEIGHTS_FILE, EXTRA_TENSORS_FILE}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False
