"""Reading a checkpoint that somebody else saved: its tensors by name, from one file or several, and nothing else."""

from __future__ import annotations

import argparse
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from toast_cli.storage.file_type import TORCH_FILE_DESCRIPTION, describe_file_type
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import require_regular_file
from toast_cli.utils.hashing import hash_file, hash_text
from toast_cli.utils.pickle_scan import find_refused_code

WRAPPER_KEYS = ("model", "model_state_dict", "state_dict")
"""Under which of these the tensors lie, where they do not lie at the top."""

CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".pth")
"""Of checkpoints' files. In a folder with several kinds, those of the first that is there are read."""


def list_checkpoint_files(path: Path) -> list[Path]:
    """The files of a checkpoint: itself, or the parts that lie in it, as large models are saved.

    Raises:
        UsageError: there is none.
    """
    if path.is_file():
        return [path]
    of_kind = ([file for file in sorted(path.glob(f"*{ending}")) if file.is_file()] for ending in CHECKPOINT_SUFFIXES)
    found = next((files for files in of_kind if files), [])
    if not found:
        why = f"There is no file in it that ends in {', '.join(CHECKPOINT_SUFFIXES)}." if path.is_dir() else ""
        raise UsageError(
            f"There is no checkpoint {path}.",
            why,
            "Name the file, or the folder that its parts are in.",
            code="checkpoint.missing",
        )
    return found


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a `.pth`, `.bin` or `.safetensors` file, or of all in a folder, and the names of what lay beside.

    Raises:
        UsageError: there is no such file.
        ToastError: it is damaged, holds more than weights, or numbers that are none.
    """
    tensors: dict[str, Tensor] = {}
    beside: list[str] = []
    for file in list_checkpoint_files(path):
        part, beside_part = _read_file(file)
        if twice := sorted(tensors.keys() & part.keys()):
            raise ToastError(
                f"The files in {path} are not parts of one checkpoint.",
                f"{twice[0]} is in {file.name} and in another one.",
                "Leave the parts of one checkpoint in the folder.",
                code="checkpoint.not-one-checkpoint",
            )
        tensors, beside = tensors | part, beside + beside_part
    return tensors, beside


def _read_file(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    try:
        # Training scripts keep their command line beside the weights; a Namespace does nothing when it is unpickled.
        with torch.serialization.safe_globals([argparse.Namespace]):
            raw: Any = (
                load_file(require_regular_file(path))
                if path.suffix == ".safetensors"
                else _load_pickle(require_regular_file(path))
            )
    except Exception as error:  # a damaged or a hostile file makes readers fail in any way
        code = find_refused_code(path, error)
        if code is None:
            raise _make_damaged_error(path, error) from error
        raise ToastError(
            f"{path} was not loaded: it holds more than weights.",
            f"It asks for {code}, and only tensors are read, because anything else could run code.",
            "Ask whoever made it for the state_dict alone, best as safetensors.",
            code="checkpoint.contains-code",
        ) from error
    if not isinstance(raw, Mapping):
        raise ToastError(
            f"{path} holds no tensors by name.", f"It holds a {type(raw).__name__}.", code="checkpoint.no-tensors"
        )
    beside: list[str] = []
    for wrapper in WRAPPER_KEYS:
        if isinstance(raw.get(wrapper), Mapping):
            beside = [str(name) for name in raw if name != wrapper]
            raw = raw[wrapper]
            break
    tensors = {str(name): value for name, value in raw.items() if isinstance(value, Tensor)}
    beside += [str(name) for name, value in raw.items() if not isinstance(value, Tensor)]
    if not tensors:
        raise ToastError(
            f"{path} holds no tensors by name.",
            f"It holds {', '.join(beside[:5]) or 'nothing'}.",
            code="checkpoint.no-tensors",
        )
    if all(name.startswith("module.") for name in tensors):  # as saved from several processes
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    strange = [name for name, tensor in tensors.items() if not _is_dense_cpu(tensor)]
    if strange:
        raise ToastError(
            f"{path} holds tensors that are no plain numbers (sparse, quantized, complex or without content).",
            f"They are {', '.join(strange[:3])}.",
            "Ask whoever made it for plain ones.",
            code="checkpoint.unsupported-tensors",
        )
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ToastError(
            f"{path} holds numbers that are none (NaN or infinity).",
            f"In {', '.join(broken[:3])}.",
            code="checkpoint.not-finite",
        )
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, beside


def hash_checkpoint(path: Path) -> str:
    """SHA-256 of the file or, of several, of theirs one after the other."""
    digests = [hash_file(file) for file in list_checkpoint_files(path)]
    return digests[0] if len(digests) == 1 else hash_text("".join(digests))


def _is_dense_cpu(tensor: Tensor) -> bool:
    kept = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return kept and not (tensor.is_quantized or tensor.is_complex())


def _load_pickle(path: Path) -> Any:
    if zipfile.is_zipfile(path):  # torch does not look at the checksums that it writes
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
        if changed is not None:
            raise ValueError(f"the checksum of {changed} in it is wrong")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is refused, we say why ourselves
        return torch.load(path, map_location="cpu", weights_only=True)


def _make_damaged_error(path: Path, error: Exception) -> ToastError:
    if told := describe_file_type(path, TORCH_FILE_DESCRIPTION):
        return ToastError(
            f"{path} is damaged, or no checkpoint.",
            told,
            "Give a .pth, .bin or .safetensors file.",
            code="checkpoint.damaged",
        )
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ToastError(f"{path} is damaged, or no checkpoint.", why, "Fetch it again.", code="checkpoint.damaged")
