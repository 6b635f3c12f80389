"""Files: read where they are regular, written whole or not at all, named by the first free number.

A write goes to a temporary file, which is synchronised with the disk and renamed. Torch-free.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from torch import Tensor


def get_cache_folder() -> Path:
    """Return where things are kept that can be computed again: TOAST_CACHE_DIR, else `toast` in the user's cache."""
    own = os.environ.get("TOAST_CACHE_DIR")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toast"


def require_regular_file(path: Path) -> Path:
    """Return the path of a file that has an end: reading a pipe, a socket or a device may never stop.

    Raises:
        OSError: it is not there, or is a folder, a pipe, a socket or a device.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("It is no regular file: a folder, a pipe, a socket or a device.")
    return path


def number_names(name: str) -> Iterator[str]:
    """Yield `name`, `name-2`, `name-3` and so on, to take the first that is free."""
    yield name
    yield from (f"{name}-{number}" for number in count(2))


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there replaces `path` at the end, or vanishes on an error.

    Raises:
        ToastError: the folder cannot be written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise make_write_error(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_get_umask())  # mkstemp makes private files; what we write is as shared as any other
        temporary.replace(path)
    except OSError as error:
        raise make_write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, indented."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def remove_file(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        ToastError: its folder cannot be written to.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise make_write_error(path, error) from error


def append_json_line(path: Path, value: Any) -> None:
    """Add one line to a JSON-lines file, made with its folder if need be; a line cut short before it is closed first.

    Raises:
        ToastError: the file cannot be written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            unfinished = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            line = json.dumps(value, ensure_ascii=False) + "\n"
            file.write((("\n" if unfinished else "") + line).encode())
    except OSError as error:
        raise make_write_error(path, error) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whole; shared or strided tensors are copied first, as the format demands."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with write_atomically(path) as temporary:
        try:
            save_file(plain, temporary, dict(metadata or {}))
        except SafetensorError as error:  # its own name for whatever the disk said
            raise make_write_error(path, OSError(str(error))) from error


def _get_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def make_write_error(path: Path, error: OSError) -> ToastError:
    """What a user reads where a file or folder cannot be written to."""
    return ToastError(
        f"{path} could not be written.",
        error.strerror or str(error),
        "Check space and permissions.",
        code="disk.cannot-write",
    )
