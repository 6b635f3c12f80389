"""Reading of untrusted checkpoints: only tensors, from one file or several."""

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
from toast_cli.utils.files import refuse_lfs_pointers, require_regular_file
from toast_cli.utils.hashing import hash_file, hash_text
from toast_cli.utils.pickle_scan import find_refused_code

WRAPPER_KEYS = ("model", "model_state_dict", "state_dict")
"""Keys under which a checkpoint may nest its state dict."""

CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".pth")
"""Suffixes of checkpoint files, in order of preference within a folder."""


def list_checkpoint_files(path: Path) -> list[Path]:
    """Return the files of a checkpoint: the file itself, or the shards in a folder.

    Raises:
        UsageError: There is no checkpoint file.
    """
    if path.is_file():
        return [path]
    by_suffix = ([file for file in sorted(path.glob(f"*{suffix}")) if file.is_file()] for suffix in CHECKPOINT_SUFFIXES)
    shards = next((files for files in by_suffix if files), [])
    if not shards:
        why = f"The folder has no file with the suffix {', '.join(CHECKPOINT_SUFFIXES)}." if path.is_dir() else ""
        raise UsageError(
            f"No checkpoint found at {path}.",
            why,
            "Pass a checkpoint file, or the folder of its shards.",
            code="checkpoint.missing",
        )
    return shards


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a checkpoint by name, and the names of its other entries.

    Raises:
        UsageError: There is no checkpoint file.
        ToastError: A file is damaged, contains other objects than weights, or has NaN or infinite values.
    """
    tensors: dict[str, Tensor] = {}
    other_entries: list[str] = []
    for file in list_checkpoint_files(path):
        part, part_entries = _read_file(file)
        if duplicates := sorted(tensors.keys() & part.keys()):
            raise ToastError(
                f"The files in {path} are not shards of one checkpoint.",
                f"{duplicates[0]} is in {file.name} and in another file.",
                "Keep only the files of one checkpoint in the folder.",
                code="checkpoint.not-one-checkpoint",
            )
        tensors, other_entries = tensors | part, other_entries + part_entries
    return tensors, other_entries


def _read_file(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    try:
        # Training scripts store their arguments with the weights. Unpickling a Namespace runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            raw: Any = (
                load_file(require_regular_file(path))
                if path.suffix == ".safetensors"
                else _load_pickle(require_regular_file(path))
            )
    except Exception as error:  # a damaged or malicious file can raise anything
        code = find_refused_code(path, error)
        if code is None:
            raise _make_damaged_error(path, error) from error
        raise ToastError(
            f"{path} was not loaded: it contains more than weights.",
            f"It references {code}. Only tensors are read, because other objects could run code.",
            "Ask its author for a state_dict only, preferably as safetensors.",
            code="weights.unsafe-file",
        ) from error
    if not isinstance(raw, Mapping):
        raise ToastError(
            f"{path} contains no named tensors.",
            f"Expected a mapping, got {type(raw).__name__}.",
            code="checkpoint.no-tensors",
        )
    other_entries: list[str] = []
    for wrapper in WRAPPER_KEYS:
        if isinstance(raw.get(wrapper), Mapping):
            other_entries = [str(name) for name in raw if name != wrapper]
            raw = raw[wrapper]
            break
    tensors = {str(name): value for name, value in raw.items() if isinstance(value, Tensor)}
    other_entries += [str(name) for name, value in raw.items() if not isinstance(value, Tensor)]
    if not tensors:
        raise ToastError(
            f"{path} contains no named tensors.",
            f"It contains {', '.join(other_entries[:5]) or 'nothing'}.",
            code="checkpoint.no-tensors",
        )
    if all(name.startswith("module.") for name in tensors):  # saved with DistributedDataParallel
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    unsupported = [name for name, tensor in tensors.items() if not _is_dense_cpu(tensor)]
    if unsupported:
        raise ToastError(
            f"{path} contains unsupported tensors (sparse, quantized, complex or without data).",
            f"For example {', '.join(unsupported[:3])}.",
            "Ask its author for dense real tensors.",
            code="checkpoint.unsupported-tensors",
        )
    not_finite = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if not_finite:
        raise ToastError(
            f"{path} contains NaN or infinite values.",
            f"In {', '.join(not_finite[:3])}.",
            code="checkpoint.not-finite",
        )
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }, other_entries


def hash_checkpoint(path: Path) -> str:
    """Return the SHA-256 of the file; for several files, that of their concatenated digests."""
    digests = [hash_file(file) for file in list_checkpoint_files(path)]
    return digests[0] if len(digests) == 1 else hash_text("".join(digests))


def _is_dense_cpu(tensor: Tensor) -> bool:
    kept = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return kept and not (tensor.is_quantized or tensor.is_complex())


def _load_pickle(path: Path) -> Any:
    if zipfile.is_zipfile(path):  # torch does not verify the checksums in the archive
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged} in the archive")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # refused files get our own message
        return torch.load(path, map_location="cpu", weights_only=True)


def _make_damaged_error(path: Path, error: Exception) -> ToastError:
    refuse_lfs_pointers(path)
    if description := describe_file_type(path, TORCH_FILE_DESCRIPTION):
        return ToastError(
            f"{path} is damaged or not a checkpoint.",
            description,
            "Pass a .pth, .bin or .safetensors file.",
            code="checkpoint.damaged",
        )
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ToastError(f"{path} is damaged or not a checkpoint.", why, "Download it again.", code="checkpoint.damaged")
