"""Tensors kept on disk by number: memory-mapped, checked when read, shared by all processes of a machine.

A slot holds one tensor of every name. What is in it counts only as long as the bytes are those that were written and
were made from the same input: each slot has a checksum and a digest of what it was computed from. Anything else is a
slot that is empty, never an error and never a wrong tensor: also where two processes write the same one.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import format_bytes, write_json
from toast_cli.utils.hashing import hash_bytes

DIGEST_BYTES = 16
"""Bytes of a digest."""
_CHUNK_BYTES = 2**16
"""Zeros written at a time."""
_SLOT_MARK_DTYPE = np.dtype([("checksum", "<u4"), ("digest", f"V{DIGEST_BYTES}"), ("full", "u1")])


class TensorCache:
    """A folder of slots; what was kept under the same key before is found again.

    Args:
        folder: below which the key has a folder of its own.
        key: whatever tells these tensors from others, as plain values.
        count: how many slots.
        shapes: of the tensors of a slot, by name.
        dtype: what they are kept in.

    Raises:
        ToastError: there is not enough room, or the folder cannot be written to.
    """

    def __init__(
        self, folder: Path, key: Mapping[str, Any], count: int, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype
    ) -> None:
        self.count, self.dtype = count, dtype
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.key = {**key, "count": count, "shapes": {n: list(s) for n, s in self.shapes.items()}, "dtype": str(dtype)}
        self._known = np.zeros(count, _SLOT_MARK_DTYPE)
        self.path = folder / hash_bytes(json.dumps(self.key, sort_keys=True).encode()).hex()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write_lock = FileLock(self.path / "lock")
            with self._write_lock:
                self._open()
        except OSError as error:
            raise ToastError(
                f"The cache {self.path} could not be written.",
                error.strerror or str(error),
                "Free some space, set TOAST_CACHE_DIR to another folder, or use training.cache=false.",
            ) from error

    @property
    def bytes_needed(self) -> int:
        """On disk, once every slot is full."""
        return count_cache_bytes(self.shapes, self.count, self.dtype)

    def full(self, slots: Sequence[int]) -> list[bool]:
        """Which of them hold something."""
        return [bool(self._marks[slot]["full"]) for slot in slots]

    def read(self, slot: int, digest: bytes) -> dict[str, Tensor] | None:
        """What was made from an input of this digest; None: nothing, something else, or something damaged."""
        mark = self._marks[slot].copy()
        if not mark["full"] or bytes(mark["digest"]) != digest:
            return None
        arrays = self._copied(slot)
        if _compute_checksum(arrays) != mark["checksum"]:
            return None
        self._known[slot] = mark
        return self._tensors(arrays)

    def recall(self, slot: int) -> dict[str, Tensor] | None:
        """What a slot holds, its input unseen; None unless it is what `read` or `write` last left there.

        By its mark alone, before and after: whoever writes a slot takes its mark away first.
        """
        known = self._known[slot]
        if not known["full"] or self._marks[slot] != known:
            return None
        arrays = self._copied(slot)
        return self._tensors(arrays) if self._marks[slot] == known else None

    def write(self, slot: int, tensors: Mapping[str, Tensor], digest: bytes) -> dict[str, Tensor]:
        """Keep tensors of the slot's shapes, or shorter in their first dimension, which is filled up with zeros.

        Returns:
            What `read` will find.
        """
        arrays = {name: np.zeros_like(array[slot]) for name, array in self._arrays.items()}
        for name, array in arrays.items():
            array[: len(tensors[name])] = _to_integer_array(tensors[name].to(self.dtype))
        self._known[slot] = (_compute_checksum(arrays), digest, 1)
        with self._write_lock:
            # The mark goes first and comes last: a slot whose writing was cut off is an empty one.
            self._marks[slot]["full"] = 0
            for name, array in arrays.items():
                self._arrays[name][slot] = array
            self._marks[slot] = self._known[slot]
        return self._tensors(arrays)

    def _copied(self, slot: int) -> dict[str, np.ndarray]:
        return {name: np.array(array[slot]) for name, array in self._arrays.items()}

    def _tensors(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array).view(self.dtype) for name, array in arrays.items()}

    def _reserve_disk_space(self, lengths: Mapping[Path, int]) -> None:
        """Have files of these lengths without holes; what is in them stays.

        To write to a mapped file where the disk has no room left kills the process, so that is found out before.
        """
        missing = sum(max(length - _count_disk_bytes(file), 0) for file, length in lengths.items())
        free = shutil.disk_usage(self.path).free
        if free < missing:
            raise OSError(None, f"It needs {format_bytes(missing)}, and {format_bytes(free)} are free.")
        for file, length in lengths.items():
            file.touch()
            with file.open("r+b") as handle:  # not to append: where the C library has to write zeros, it refuses that
                if not hasattr(os, "posix_fallocate"):
                    for begin in range(handle.seek(0, os.SEEK_END), length, _CHUNK_BYTES):
                        handle.write(bytes(min(_CHUNK_BYTES, length - begin)))
                elif _count_disk_bytes(file) < length:
                    os.posix_fallocate(handle.fileno(), 0, length)

    def _open(self) -> None:
        """Map the files, made anew where they are not what the key says, with all their room on disk."""
        files = {name: self.path / f"{name}.bin" for name in self.shapes}
        sizes = {name: count_cache_bytes({name: shape}, self.count, self.dtype) for name, shape in self.shapes.items()}
        marks, told = self.path / "marks.bin", self.path / "key.json"
        sound = all(file.is_file() and file.stat().st_size == sizes[name] for name, file in files.items())
        sound = sound and marks.is_file() and marks.stat().st_size == self.count * _SLOT_MARK_DTYPE.itemsize
        if not sound or _read_json(told) != self.key:
            told.unlink(missing_ok=True)
            for file in (marks, *files.values()):
                file.unlink(missing_ok=True)
            try:
                self._reserve_disk_space(
                    {marks: self.count * _SLOT_MARK_DTYPE.itemsize, **{files[name]: sizes[name] for name in files}}
                )
                write_json(told, self.key)
            except (OSError, ToastError):
                for file in (marks, *files.values()):
                    file.unlink(missing_ok=True)
                raise
        else:  # an earlier toast left holes in files, which a full disk cannot fill
            self._reserve_disk_space({file: sizes[name] for name, file in files.items()})
        bits = np.dtype(f"i{self.dtype.itemsize}")
        self._marks = np.memmap(marks, _SLOT_MARK_DTYPE, "r+", shape=(self.count,))
        self._arrays = {
            name: np.memmap(file, bits, "r+", shape=(self.count, *self.shapes[name])) for name, file in files.items()
        }


def _count_disk_bytes(file: Path) -> int:
    """Bytes of the disk, which are fewer than a file's length where it has holes."""
    return file.stat().st_blocks * 512 if file.exists() else 0


def count_cache_bytes(shapes: Mapping[str, Sequence[int]], count: int, dtype: torch.dtype) -> int:
    """Bytes of so many slots."""
    return count * sum(int(np.prod(shape)) for shape in shapes.values()) * dtype.itemsize


def _to_integer_array(tensor: Tensor) -> np.ndarray:
    """The same bytes as integers: NumPy knows no bfloat16."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    return tensor.detach().cpu().contiguous().view(integers).numpy()


def _compute_checksum(arrays: Mapping[str, np.ndarray]) -> int:
    value = 0
    for array in arrays.values():
        value = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, value)
    return value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
