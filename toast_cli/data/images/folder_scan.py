"""Folder trees, on disk or in an archive, and the images in them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from toast_cli.data.images.file_formats import HEIF_SUFFIXES, get_image_suffixes
from toast_cli.utils.errors import ToastError


class FolderContents(NamedTuple):
    """Paths of all images, other files and links to folders below a folder, in any order."""

    images: Sequence[str]
    others: Sequence[str] = ()
    links: Sequence[str] = ()


class FolderTree(Protocol):
    """A tree of folders and files, without hidden ones. Paths are relative to its root, with forward slashes."""

    @property
    def root(self) -> Any:
        """The root of the images, for a `FileSplit`."""

    def get_display_path(self, below: str = "") -> str:
        """Return the name of a folder for messages."""

    def list_folders(self, below: str = "") -> list[str]:
        """Return the sorted names of the folders directly in a folder.

        Raises:
            ToastError: the folder cannot be read.
        """

    def list_files(self, below: str = "") -> list[str]:
        """Return the paths of the files directly in a folder."""

    def list_files_recursively(self, below: str = "") -> FolderContents:
        """Return the paths of all files below a folder."""


@dataclass(frozen=True)
class DiskFolder:
    """A folder on disk. Links to files are followed; links to folders, which may loop, only for class folders."""

    root: Path

    def get_display_path(self, below: str = "") -> str:
        """Return the full path of a folder."""
        return str(self.root / below)

    def list_folders(self, below: str = "") -> list[str]:
        """Return the sorted names of the folders directly in a folder.

        Raises:
            ToastError: the folder cannot be read, or contains a link to a folder that contains the link.
        """
        folder = self.root / below
        try:
            found = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
            for entry in found:
                if entry.is_symlink() and folder.resolve().is_relative_to(entry.resolve()):
                    raise ToastError(
                        f"{entry} links to a folder that contains the link.",
                        "Reading it would never end.",
                        "Remove the link.",
                        code="data.link-loop",
                    )
            return sorted(entry.name for entry in found)
        except OSError as error:
            raise ToastError(
                f"Cannot read {folder}.",
                error.strerror or str(error),
                "Check its permissions.",
                code="data.unreadable-folder",
            ) from error

    def list_files(self, below: str = "") -> list[str]:
        """Return the paths of the files directly in a folder."""
        names = sorted(entry.name for entry in (self.root / below).iterdir() if not entry.is_dir())
        return [f"{below}/{name}" if below else name for name in names if not name.startswith(".")]

    def list_files_recursively(self, below: str = "") -> FolderContents:
        """Return the paths of all files below a folder, without following links to folders."""
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
    """Return whether a name has the suffix of an image and is not hidden."""
    return Path(name).suffix.lower() in get_image_suffixes() and not Path(name).name.startswith(".")


def is_heif_name(name: str) -> bool:
    """Return whether a name has the suffix of a HEIC image, which can be read only with pillow-heif."""
    return Path(name).suffix.lower() in HEIF_SUFFIXES and not Path(name).name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """Return the paths of all images below a folder on disk."""
    return [folder / name for name in DiskFolder(folder).list_files_recursively().images]


def describe_unread_files(place: str, found: Iterable[FolderContents]) -> list[str]:
    """Return notes on files and links that are not read."""
    found = list(found)
    others = sorted(name for each in found for name in each.others if not is_heif_name(name))
    heif = sorted(name for each in found for name in each.others if is_heif_name(name))
    links = sorted(name for each in found for name in each.links)
    notes = []
    if others:
        notes.append(f"{place}: not read, no image suffix: {summarize_file_names(others)}")
    if heif:
        notes.append(
            f"{place}: not read, HEIC needs pillow-heif (pip install pillow-heif): {summarize_file_names(heif)}"
        )
    if links:
        notes.append(f"{place}: links to folders are not followed: {summarize_file_names(links)}")
    return notes


def summarize_file_names(names: Sequence[str], most: int = 5) -> str:
    """Return the number of files and the first few names, for a message."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{len(names):,} ({', '.join(map(to_printable_name, names[:most]))}{more})"


def to_printable_name(name: str) -> str:
    """Return a file name with bytes that are not valid UTF-8 replaced, for a message or a report."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
