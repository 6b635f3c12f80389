"""Files of a data set: interfaces to open them, and a check for missing ones."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import require_regular_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STAMP_BLOCK = 4096
"""Length in bytes of the blocks of a file that its stamp covers."""


class ImageFile(Protocol):
    """A file that can be opened for reading: a `Path`, or a file in an archive. `str()` of it is its name."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]:
        """Open the file for reading."""


class FileRoot(Protocol):
    """A container of image files: a `Path`, an archive, or the rows of a table."""

    def __truediv__(self, name: str, /) -> Any:
        """Return the `ImageFile` of a name."""


class MissingFilesError(ToastError):
    """Files that a data set lists and that do not exist: `names` has all of them, `known` says what is known."""

    def __init__(self, names: Sequence[str], total: int, what: str, what_to_do: str, known: Sequence[str] = ()) -> None:
        self.names, self.known = tuple(names), tuple(known)
        super().__init__(
            f"{len(names):,} of {total:,} {what} are missing.",
            (f"The first is {names[0]}.", *known),
            what_to_do,
            code="data.missing-files",
        )


def compute_file_stamp(file: ImageFile) -> int | None:
    """Return a number that changes with the content of a file, cheap to compute; None if the file cannot be read.

    It is a hash of the size and of the first, middle and last `STAMP_BLOCK` bytes. A file in an archive computes its
    own, since a zip has a checksum of all bytes.
    """
    if not isinstance(file, Path):
        return getattr(file, "stamp", None)
    try:
        with require_regular_file(file).open("rb", buffering=0) as stream:

            def read(start: int, count: int) -> bytes:
                stream.seek(start)
                return stream.read(count)

            return hash_blocks(os.fstat(stream.fileno()).st_size, read)
    except OSError:
        return None


def hash_stamps(files: Sequence[ImageFile | str]) -> str:
    """Return a hash of the names and stamps of files; of a URL, of its text."""
    digest = blake2b(digest_size=8)
    for file in files:
        stamp = None if isinstance(file, str) else compute_file_stamp(file)
        digest.update(
            f"{file if isinstance(file, str) else Path(str(file)).name}\t{stamp}\n".encode(errors="surrogateescape")
        )
    return digest.hexdigest()


def hash_blocks(size: int, read: Callable[[int, int], bytes]) -> int:
    """Return a hash of a size in bytes and of three blocks of the content; of all of it if it is no longer than them.

    `read(start, count)` returns a part of the content.
    """
    small = size <= 3 * STAMP_BLOCK
    starts = (0,) if small else (0, (size - STAMP_BLOCK) // 2, size - STAMP_BLOCK)
    content = b"".join(read(start, size if small else STAMP_BLOCK) for start in starts)
    return int.from_bytes(blake2b(b"%d " % size + content, digest_size=6).digest(), "big")


def open_file(file: ImageFile) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        OSError: the file does not exist, or is a folder, a pipe or a device; reading those may never end.
    """
    return (require_regular_file(file) if isinstance(file, Path) else file).open("rb")


def read_text_file(file: Path) -> str:
    """Return the content of a UTF-8 text file.

    Raises:
        OSError: as in `open_file`.
        UnicodeDecodeError: the file is not UTF-8 text.
    """
    with open_file(file) as stream:
        return stream.read().decode("utf-8-sig")
