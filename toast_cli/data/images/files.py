"""Labelled image files: the `Split` that most sources hand out. Opens nothing until asked for an image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from toast_cli.data.base import Sample
from toast_cli.utils.errors import ToastError
from toast_cli.utils.regular_file import regular

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toast_cli.data.images.object_masks import Region


class ImageFile(Protocol):
    """Something that can be opened and read: a `Path`, or a file within an archive. Its text is its name."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]:
        """Open it for reading."""


class Root(Protocol):
    """What image files lie below: a `Path`, an archive, the rows of a table."""

    def __truediv__(self, name: str, /) -> Any:
        """The file of a name, as `open_image` takes it."""


class MissingFiles(ToastError):
    """Files that are named somewhere and are not there, by `names`."""

    def __init__(self, names: Sequence[str], total: int, what: str, what_to_do: str) -> None:
        self.names = tuple(names)
        super().__init__(f"{len(names):,} of {total:,} {what} are missing.", f"The first is {names[0]}.", what_to_do)


def require_files(files: Sequence[tuple[str, Path]], what: str, what_to_do: str) -> None:
    """A missing file is said now, not in the middle of a training run; `files` are what to call each, and where it is.

    Raises:
        MissingFiles: some are not there.
    """
    missing = [name for name, file in files if not file.is_file()]
    if missing:
        raise MissingFiles(missing, len(files), what, what_to_do)


def open_file(file: ImageFile) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        OSError: it is not there, or is a folder, a pipe or a device: reading those may never come to an end.
    """
    return (regular(file) if isinstance(file, Path) else file).open("rb")


def read_text(file: Path) -> str:
    """A text file of a data set: lists, annotations, names of classes.

    Raises:
        OSError: as `open_file`.
        UnicodeDecodeError: it is no UTF-8 text.
    """
    with open_file(file) as stream:
        return stream.read().decode("utf-8-sig")


@dataclass(frozen=True)
class FileSplit:
    """Image files with their labels and, where the source has them, what marks the labelled object in each.

    `names` are paths below `root` with forward slashes, so that they, and whatever is drawn from them, are the same
    on every machine.
    """

    root: Root
    names: tuple[str, ...]
    labels: tuple[int, ...]
    regions: tuple[Region, ...] | None = None

    @property
    def has_masks(self) -> bool:
        """Whether every sample carries a mask."""
        return self.regions is not None

    @property
    def marks(self) -> str | None:
        """What the masks are: boxes, outlines, ..."""
        return self.regions[0].what if self.regions else None

    @property
    def folders(self) -> frozenset[Path]:
        """The folder that the images are read from, unless they lie in something else."""
        return frozenset({self.root} if isinstance(self.root, Path) else ())

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Sequence[int]) -> FileSplit:
        """The samples at `indices`, in that order."""
        regions = None if self.regions is None else tuple(self.regions[i] for i in indices)
        return FileSplit(
            self.root, tuple(self.names[i] for i in indices), tuple(self.labels[i] for i in indices), regions
        )

    def without_masks(self) -> FileSplit:
        """The same images alone: a mask may be a file of its own, which takes time to read."""
        return replace(self, regions=None)

    def load(self, index: int) -> Sample:
        """Read one image, and its mask.

        Raises:
            ToastError: the file is not there or is not an image that can be read.
        """
        from toast_cli.data.images.decode import open_image

        image = open_image(self.root / self.names[index])
        mask = None if self.regions is None else self.regions[index].mask(image.height, image.width)
        return Sample(image, self.labels[index], self.names[index], mask)
