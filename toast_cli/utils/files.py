"""Reading of regular files, and atomic writing.

A file is written to a temporary file, which is synchronized with the disk and renamed. Torch-free.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.utils.errors import ToastError
from toast_cli.utils.names import format_json

if TYPE_CHECKING:
    from torch import Tensor


def get_cache_folder() -> Path:
    """Return the cache folder: TOAST_CACHE_DIR, else `toast` in the user's cache folder."""
    own = os.environ.get("TOAST_CACHE_DIR")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toast"


def require_regular_file(path: Path) -> Path:
    """Return the path if it is a regular file. Reading a pipe, a socket or a device may never end.

    Raises:
        OSError: The file does not exist, or is a folder, a pipe, a socket or a device.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("It is not a regular file but a folder, a pipe, a socket or a device.")
    return path


LFS_POINTER = b"version https://git-lfs"
"""The first bytes of a file that stands for another one in a clone without Git LFS."""


def refuse_lfs_pointers(place: Path) -> None:
    """Check that a file, or the model in a folder, is no pointer of Git LFS; called after it could not be read.

    Raises:
        ToastError: It is one.
    """
    patterns = ("*.safetensors", "*.bin", "config.json")
    files = sorted(file for pattern in patterns for file in place.glob(pattern)) if place.is_dir() else [place]
    for path in files:
        if _is_lfs_pointer(path):
            raise ToastError(
                f"{path} cannot be loaded.",
                f"{path.name} is a Git LFS pointer instead of the file itself.",
                "Install Git LFS and run 'git lfs pull' in its folder, or download the file.",
                code="weights.lfs-pointer",
            )


def _is_lfs_pointer(path: Path) -> bool:
    try:
        with require_regular_file(path).open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which replaces `path` at the end of the block or is removed on an error.

    Raises:
        ToastError: The folder cannot be written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:20]}.", dir=path.parent)
    except OSError as error:
        raise make_write_error(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_get_umask())  # mkstemp creates private files; use the default permissions instead
        temporary.replace(path)
    except OSError as error:
        raise make_write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Bytes of file names that are not UTF-8 are escaped, as `\\udce9`."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file atomically."""
    write_text(path, format_json(value, indent=2) + "\n")


def remove_file(path: Path) -> None:
    """Remove a file if it exists.

    Raises:
        ToastError: The folder of the file cannot be written to.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise make_write_error(path, error) from error


def append_json_line(path: Path, value: Any) -> None:
    """Append one line to a JSON Lines file, creating file and folder. An unfinished last line is ended first.

    Raises:
        ToastError: The file cannot be written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            unfinished = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            line = format_json(value) + "\n"
            file.write((("\n" if unfinished else "") + line).encode())
    except OSError as error:
        raise make_write_error(path, error) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically. Tensors are copied first, as the format allows no shared or strided ones."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with write_atomically(path) as temporary:
        try:
            save_file(plain, temporary, dict(metadata or {}))
        except SafetensorError as error:  # wraps errors of the disk
            raise make_write_error(path, OSError(str(error))) from error


def _get_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def make_write_error(path: Path, error: OSError) -> ToastError:
    """Return the error about a file or folder that cannot be written."""
    return ToastError(
        f"{path} could not be written.",
        error.strerror or str(error),
        "Check space and permissions.",
        code="disk.cannot-write",
    )
