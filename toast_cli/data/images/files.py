"""Files of a data set: interfaces to open them, and a check for missing ones."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import require_regular_file

if TYPE_CHECKING:
    from collections.abc import Sequence


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


def get_file_size(file: ImageFile) -> int | None:
    """Return the size of a file in bytes without reading it; None if it is unknown or the file cannot be accessed."""
    try:
        return file.stat().st_size if isinstance(file, Path) else getattr(file, "size", None)
    except OSError:
        return None


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
