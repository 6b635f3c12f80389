"""Images in folders: what a source with folders sees of a disk, an archive, or whatever else holds files by path."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from toast_cli.data.images.file_formats import get_image_suffixes
from toast_cli.utils.errors import ToastError


class FolderContents(NamedTuple):
    """What lies anywhere below a folder, by path, in any order: images, other files, and links that lead to folders."""

    images: Sequence[str]
    others: Sequence[str] = ()
    links: Sequence[str] = ()


class FolderTree(Protocol):
    """Folders and the images in them, by their path below the root, with forward slashes; hidden ones are left out."""

    @property
    def root(self) -> Any:
        """What the images lie below, as a `FileSplit` takes it."""

    def place(self, below: str = "") -> str:
        """What a message calls a folder."""

    def folders(self, below: str = "") -> list[str]:
        """Sorted names of the folders directly in a folder.

        Raises:
            ToastError: the folder cannot be read.
        """

    def files(self, below: str = "") -> list[str]:
        """Paths of the files directly in a folder."""

    def found(self, below: str = "") -> FolderContents:
        """Paths of all files anywhere below a folder."""


@dataclass(frozen=True)
class DiskFolder:
    """A folder on disk. Links to files are taken; links to folders only where a class is expected, as they may loop."""

    root: Path

    def place(self, below: str = "") -> str:
        """Its whole path."""
        return str(self.root / below)

    def folders(self, below: str = "") -> list[str]:
        """Sorted names of the folders directly in a folder.

        Raises:
            ToastError: it cannot be read, or one of them is a link to a folder around it.
        """
        folder = self.root / below
        try:
            found = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
            for entry in found:
                if entry.is_symlink() and folder.resolve().is_relative_to(entry.resolve()):
                    raise ToastError(
                        f"{entry} is a link to a folder that holds it.",
                        "It would be read in circles.",
                        "Remove it.",
                        code="data.link-loop",
                    )
            return sorted(entry.name for entry in found)
        except OSError as error:
            raise ToastError(
                f"{folder} cannot be read.",
                error.strerror or str(error),
                "Check its permissions.",
                code="data.unreadable-folder",
            ) from error

    def files(self, below: str = "") -> list[str]:
        """Paths of the files directly in a folder."""
        names = sorted(entry.name for entry in (self.root / below).iterdir() if not entry.is_dir())
        return [f"{below}/{name}" if below else name for name in names if not name.startswith(".")]

    def found(self, below: str = "") -> FolderContents:
        """Paths of all files anywhere below a folder; what a link to a folder leads to is left out."""
        images: list[str] = []
        others: list[str] = []
        links: list[str] = []
        for place, inner, files in os.walk(self.root / below):
            folder = Path(place).relative_to(self.root)
            inner[:] = [name for name in inner if not name.startswith(".")]
            links += [(folder / name).as_posix() for name in inner if Path(place, name).is_symlink()]
            for name in files:
                if not name.startswith("."):
                    (images if is_image_name(name) else others).append((folder / name).as_posix())
        return FolderContents(images, others, links)


def is_image_name(name: str) -> bool:
    """Whether a file's name is that of an image, and not of a hidden file."""
    return Path(name).suffix.lower() in get_image_suffixes() and not Path(name).name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """Images anywhere below a folder on disk."""
    return [folder / name for name in DiskFolder(folder).found().images]


def describe_unread_files(place: str, found: Iterable[FolderContents]) -> list[str]:
    """The sentences about files that were met in folders and are not read."""
    found = list(found)
    others = sorted(name for each in found for name in each.others)
    links = sorted(name for each in found for name in each.links)
    notes = []
    if others:
        notes.append(f"{place}: not read, as their endings are none of images: {summarize_file_names(others)}")
    if links:
        notes.append(f"{place}: links to folders are not followed: {summarize_file_names(links)}")
    return notes


def summarize_file_names(names: Sequence[str], most: int = 5) -> str:
    """How many files, and the first few of them, for a message."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{len(names):,} ({', '.join(map(to_printable_name, names[:most]))}{more})"


def to_printable_name(name: str) -> str:
    """A file's name for a message or a report: bytes that are no UTF-8 become question marks."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
