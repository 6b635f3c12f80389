"""Detection of the code that a rejected pickle would have run, by reading its opcodes. Torch-free.

This module does not decide which files are safe; the safe readers do. It only names the cause in error messages.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

MAX_PICKLE_BYTES = 16_000_000
"""Maximum number of bytes that are read from a pickle."""
MAX_PICKLES = 8
"""Maximum number of consecutive pickles in a file, as old versions of torch wrote them."""
_HARMLESS = (
    *("torch._utils._rebuild", "torch._tensor._rebuild", "torch.storage", "torch.Size", "torch.device", "torch.dtype"),
    *("collections.OrderedDict", "argparse.Namespace", "numpy.", "_codecs.encode"),
)


def find_pickled_code(path: Path) -> str | None:
    """Return the first global besides tensors that a pickle in the file refers to, such as `posix.system`, or None.

    Archives of torch and NumPy and plain pickles are searched.
    """
    with suppress(OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        for content in _read_pickles(path):
            for name in _list_globals(content):
                if not (name.startswith(_HARMLESS) or (name.startswith("torch.") and name.endswith("Storage"))):
                    return name
    return None


def find_refused_code(path: Path, error: BaseException | None) -> str | None:
    """Return the global that made a reader reject the file, or None if it failed for another reason.

    The chain of exceptions is searched for the message of torch's safe unpickler.
    """
    if code := find_pickled_code(path):
        return code
    while error is not None:
        if isinstance(error, pickle.UnpicklingError) and (name := re.search(r"(?:GLOBAL|class) (\S+)", str(error))):
            return name[1]
        error = error.__cause__ or error.__context__
    return None


def _read_pickles(path: Path) -> Iterator[bytes]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            yield file.read(MAX_PICKLE_BYTES)
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith((".pkl", ".npy")):
                with archive.open(name) as file:
                    yield _skip_npy_header(file) if name.endswith(".npy") else file.read(MAX_PICKLE_BYTES)


def _skip_npy_header(file: IO[bytes]) -> bytes:
    """Return the content after the header line with an array's data type and shape."""
    start = file.read(MAX_PICKLE_BYTES)
    return start.partition(b"\n")[2] if start.startswith(b"\x93NUMPY") else start


def _list_globals(content: bytes) -> Iterator[str]:
    """Yield `module.name` of all globals that the pickles refer to, as far as they can be parsed."""
    file, texts, kept = io.BytesIO(content), ["", ""], dict[object, str]()
    with suppress(ValueError, EOFError, KeyError, OverflowError, MemoryError):
        for _ in range(MAX_PICKLES):
            for operation, argument, _place in pickletools.genops(file):
                if operation.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif operation.name == "STACK_GLOBAL":
                    yield ".".join(texts[-2:])
                elif operation.name == "MEMOIZE":
                    kept[len(kept)] = texts[-1]
                elif "PUT" in operation.name:
                    kept[argument] = texts[-1]
                elif "GET" in operation.name:
                    texts.append(kept.get(argument, ""))
                elif isinstance(argument, str):
                    texts.append(argument)
