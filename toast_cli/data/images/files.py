"""Files that a data set names: what can be opened and read, and an error for those that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from toast_cli.utils.errors import ToastError
from toast_cli.utils.regular_file import require_regular_file

if TYPE_CHECKING:
    from collections.abc import Sequence


class ImageFile(Protocol):
    """Something that can be opened and read: a `Path`, or a file within an archive. Its text is its name."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]:
        """Open it for reading."""


class FileRoot(Protocol):
    """What image files lie below: a `Path`, an archive, the rows of a table."""

    def __truediv__(self, name: str, /) -> Any:
        """The file of a name, as `open_image` takes it."""


class MissingFilesError(ToastError):
    """Files that are named somewhere and are not there, by `names`."""

    def __init__(self, names: Sequence[str], total: int, what: str, what_to_do: str) -> None:
        self.names = tuple(names)
        super().__init__(
            f"{len(names):,} of {total:,} {what} are missing.",
            f"The first is {names[0]}.",
            what_to_do,
            code="data.missing-files",
        )


def require_files(files: Sequence[tuple[str, Path]], what: str, what_to_do: str) -> None:
    """A missing file is said now, not in the middle of a training run; `files` are what to call each, and where it is.

    Raises:
        MissingFiles: some are not there.
    """
    missing = [name for name, file in files if not file.is_file()]
    if missing:
        raise MissingFilesError(missing, len(files), what, what_to_do)


def open_file(file: ImageFile) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        OSError: it is not there, or is a folder, a pipe or a device: reading those may never come to an end.
    """
    return (require_regular_file(file) if isinstance(file, Path) else file).open("rb")


def read_text_file(file: Path) -> str:
    """A text file of a data set: lists, annotations, names of classes.

    Raises:
        OSError: as `open_file`.
        UnicodeDecodeError: it is no UTF-8 text.
    """
    with open_file(file) as stream:
        return stream.read().decode("utf-8-sig")
