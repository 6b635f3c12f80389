"""Texts and tokens kept in files that vanish with the process, so that memory does not grow with them.

They lie in the system's folder for temporary files, which TMPDIR moves.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable
from hashlib import sha256
from typing import IO, TYPE_CHECKING

from toast_cli.data.text.duplicates import compute_text_key
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    import numpy as np


class TextStore:
    """Texts by number, as they came; memory holds 24 bytes of each: where it ends, its hash, and the key of its copies.

    Raises:
        ToastError: there is no room for them.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._file = _open_temporary_file()
        self._ends = array("q", [0])
        self.hashes, self.keys = array("Q"), array("Q")
        for text in texts:
            data = text.encode(errors="surrogatepass")
            _write_bytes(self._file, data)
            self._ends.append(self._ends[-1] + len(data))
            self.hashes.append(int.from_bytes(sha256(data).digest()[:8], "big"))
            self.keys.append(compute_text_key(text))

    def __len__(self) -> int:
        return len(self.hashes)

    def read(self, number: int) -> str:
        """One text."""
        self._file.seek(self._ends[number])
        return self._file.read(self._ends[number + 1] - self._ends[number]).decode(errors="surrogatepass")


def memory_map_tokens(parts: Iterable[array[int]]) -> np.ndarray:
    """Whole numbers `[N]` int32, written as they come and mapped into memory from there.

    Raises:
        ToastError: there is no room for them.
    """
    import numpy as np

    file = _open_temporary_file()
    for part in parts:
        _write_bytes(file, part.tobytes())
    file.flush()
    return np.memmap(file, np.int32, "r") if file.tell() else np.empty(0, np.int32)


def _open_temporary_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()  # closed, and gone, with whoever holds it
    except OSError as error:
        raise _make_no_space_error(error) from error


def _write_bytes(file: IO[bytes], data: bytes) -> None:
    try:
        file.write(data)
    except OSError as error:
        raise _make_no_space_error(error) from error


def _make_no_space_error(error: OSError) -> ToastError:
    return ToastError(
        f"Cannot store the text in {tempfile.gettempdir()}.",
        error.strerror or str(error),
        "Free some space, or set TMPDIR to another folder.",
        code="disk.cannot-write",
    )
