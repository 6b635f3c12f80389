"""A cache of named tensors on disk: one file per entry, verified when read, shared by all processes.

An entry is written atomically and is valid only if its checksum matches. Invalid entries count as missing: they cause
neither an error nor a wrong tensor.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import get_cache_folder
from toast_cli.utils.formatting import format_bytes
from toast_cli.utils.hashing import hash_bytes

FORMAT = "crc32, then safetensors"
"""Format of an entry's file. Entries of another format are in another folder."""
PREFIX_BYTES = 8
"""Size of the checksum, chosen to keep the tensors aligned."""
_DTYPES = {
    "U8": torch.uint8,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class TensorCache:
    """A folder of entries. The same key finds the same entries again.

    Args:
        kind: Subfolder of the cache folder.
        key: Plain values that identify the entries.
        count: Number of entries that will be written.
        entry_bytes: Size of the tensors of one entry.
        switch: The setting that turns the cache off, for messages.

    Raises:
        ToastError: There is not enough disk space, or the folder cannot be written to.
    """

    def __init__(self, kind: str, key: Mapping[str, Any], count: int, entry_bytes: int, switch: str) -> None:
        self.switch = switch
        self.path = get_cache_folder() / kind / hash_bytes(json.dumps([FORMAT, key], sort_keys=True).encode()).hex()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            entries = sum(not file.name.startswith(".") for file in self.path.iterdir())  # without interrupted writes
            missing = max(count - entries, 0) * entry_bytes
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise self._make_error(error.strerror or str(error)) from error
        if missing > free:
            raise self._make_error(f"It needs {format_bytes(missing)}, and {format_bytes(free)} are free.")

    def read(self, name: str, *, verify: bool = True) -> dict[str, Tensor] | None:
        """Return the tensors of an entry, or None if it is missing or damaged.

        Pass `verify=False` for entries that this process has read or written before.
        """
        try:
            with (self.path / name).open("rb", buffering=0) as file:
                content = np.empty(os.fstat(file.fileno()).st_size, np.uint8)
                file.readinto(content.data)
            if verify and int(content[:PREFIX_BYTES].view(np.uint64)[0]) != zlib.crc32(content[PREFIX_BYTES:].data):
                return None
            return _view_tensors(content[PREFIX_BYTES:])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):  # cut short, if unverified
            return None

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry. Processes that write the same entry at once write the same content.

        Raises:
            ToastError: The folder cannot be written to, or the disk is full.
        """
        content = save(dict(tensors))
        temporary = self.path / f".{name}.{os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Not synchronized with the disk: the checksum detects entries cut short by a crash of the machine.
            temporary.write_bytes(zlib.crc32(content).to_bytes(PREFIX_BYTES, "little") + content)
            temporary.replace(self.path / name)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._make_error(error.strerror or str(error)) from error

    def _make_error(self, why: str) -> ToastError:
        return ToastError(
            f"The cache {self.path} could not be written.",
            why,
            f"Free some space, set TOAST_CACHE_DIR to another folder, or use {self.switch}=false.",
            code="cache.cannot-write",
        )


def _view_tensors(content: np.ndarray) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file as views of its bytes. safetensors itself would copy them."""
    start = 8 + int.from_bytes(content[:8].data, "little")
    header, data = json.loads(content[8:start].tobytes()), torch.from_numpy(content[start:])
    return {
        name: data[slice(*entry["data_offsets"])].view(_DTYPES[entry["dtype"]]).view(entry["shape"])
        for name, entry in header.items()
    }
