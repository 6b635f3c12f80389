"""Images in folders: what a source with folders sees of a disk, an archive, or whatever else holds files by path."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from toast_cli.errors import ToastError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


class Tree(Protocol):
    """Folders and the images in them, by their path below the root, with forward slashes; hidden ones are left out."""

    @property
    def root(self) -> Any:
        """What the images lie below, as a `FileSplit` takes it."""

    def place(self, below: str) -> str:
        """What a message calls a folder."""

    def folders(self, below: str = "") -> list[str]:
        """Sorted names of the folders directly in a folder.

        Raises:
            ToastError: the folder cannot be read.
        """

    def images(self, below: str = "") -> list[str]:
        """Paths of all images anywhere below a folder, in any order."""


@dataclass(frozen=True)
class Disk:
    """A folder on disk. Links to files are taken; links to folders only where a class is expected, as they may loop."""

    root: Path

    def place(self, below: str) -> str:
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
                        f"{entry} is a link to a folder that holds it.", "It would be read in circles.", "Remove it."
                    )
            return sorted(entry.name for entry in found)
        except OSError as error:
            raise ToastError(
                f"{folder} cannot be read.", error.strerror or str(error), "Check its permissions."
            ) from error

    def images(self, below: str = "") -> list[str]:
        """Paths of all images anywhere below a folder."""
        found = []
        for place, inner, files in os.walk(self.root / below):
            inner[:] = [name for name in inner if not name.startswith(".")]
            found += [Path(place, name).relative_to(self.root).as_posix() for name in files if is_image(name)]
        return found


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image, and not of a hidden file."""
    return Path(name).suffix.lower() in EXTENSIONS and not Path(name).name.startswith(".")


def images_below(folder: Path) -> list[Path]:
    """Images anywhere below a folder on disk."""
    return [folder / name for name in Disk(folder).images()]
