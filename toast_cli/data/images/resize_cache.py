"""Images kept on disk as they are after their first step, the resize, so that a large photograph is decoded once.

What is kept goes by what is in the image's file, not by its name or its date: a file that changes is another image. An
entry has a checksum and is written whole or not at all; one that is damaged is written anew, never used.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from toast_cli.data.base import Sample, describe_masks
from toast_cli.data.images.file_split import FileSplit
from toast_cli.data.images.files import open_file
from toast_cli.data.images.transforms import ImageTransform, ResizeToCover
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import format_bytes, get_cache_folder
from toast_cli.utils.hashing import hash_bytes

RESIZED_FOLDER = "resized"
ENTRY_HEADER = struct.Struct("<8sIIIII")
"""Mark, checksum of all that follows it, height and width of the file's image, and of the resized one; then pixels."""
ENTRY_MAGIC = b"TOASTRGB"
CHECKSUM_START = len(ENTRY_MAGIC) + 4
"""Where what the checksum is of begins: a damaged size would lay the mask of another image over this one."""


@dataclass(frozen=True)
class ResizedSplit:
    """The images of `split` after `step`, and their masks likewise; `folder` is where they are kept."""

    split: FileSplit
    step: v2.Transform
    folder: Path

    @property
    def labels(self) -> Sequence[int]:
        """Class of every image."""
        return self.split.labels

    @property
    def names(self) -> Sequence[str]:
        """What an error or a table calls every image."""
        return self.split.names

    @property
    def has_masks(self) -> bool:
        """Whether every sample carries a mask."""
        return self.split.has_masks

    @property
    def marks(self) -> str | None:
        """What the masks are."""
        return describe_masks(self.split)

    def __len__(self) -> int:
        return len(self.split)

    def load(self, index: int) -> Sample:
        """One image as it was kept, or as it is kept now.

        Raises:
            ToastError: the file cannot be read, or what it came to cannot be kept.
        """
        name = self.split.names[index]
        try:
            with open_file(self.split.root / name) as file:
                kept = self.folder / hash_bytes(file.read()).hex()
        except OSError:
            return self.split.load(index)  # says what is wrong with it
        found = _read_entry(kept)
        if found is None:
            image = self.split.without_masks().load(index).image
            found = self.step(image), image.height, image.width
            _write_entry(kept, *found)
        image, height, width = found
        mask = None
        if self.split.regions is not None:
            whole = torch.from_numpy(self.split.regions[index].mask(height, width).astype(np.uint8))
            mask = self.step(tv_tensors.Mask(whole)).numpy().astype(bool)
        return Sample(image, self.split.labels[index], name, mask)


def cache_resized(split: Any, transform: ImageTransform) -> tuple[ResizedSplit, str]:
    """The same images, kept resized, and a sentence on where and how much that is.

    Raises:
        UsageError: they are not files, or their first step is none to keep.
        ToastError: there is not enough room.
    """
    step = transform.steps.transforms[0]
    if not isinstance(split, FileSplit):
        raise UsageError("images.cache keeps image files, and these are not read from any.", what_to_do="Leave it out.")
    if not isinstance(step, v2.Resize | ResizeToCover):
        raise UsageError(
            "images.cache keeps resized images, and images.augment=random-resized-crop cuts them out of whole ones.",
            what_to_do="Leave images.cache out, or use images.augment=crop-flip.",
        )
    versions = f"{PIL.__version__} {torchvision.__version__}"  # whose resizing it is
    folder = get_cache_folder() / RESIZED_FOLDER / hash_bytes(f"{step} {versions} {ENTRY_HEADER.format}".encode()).hex()
    image = step(split.without_masks().load(0).image)
    needed = len(split) * (ENTRY_HEADER.size + 3 * image.height * image.width)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _cannot_write_error(folder, error.strerror or str(error)) from error
    if needed > free:
        raise _cannot_write_error(folder, f"It needs {format_bytes(needed)}, and {format_bytes(free)} are free.")
    note = f"Resized images are kept in {folder}: about {format_bytes(needed)} for {len(split):,} of one size."
    return ResizedSplit(split, step, folder), note


def _read_entry(path: Path) -> tuple[Image.Image, int, int] | None:
    """What is kept, and the size of what it was made from; None where there is nothing sound."""
    try:
        content = path.read_bytes()
        mark, checksum, height, width, rows, columns = ENTRY_HEADER.unpack_from(content)
    except (OSError, struct.error):
        return None
    pixels = content[ENTRY_HEADER.size :]
    if mark != ENTRY_MAGIC or zlib.crc32(content[CHECKSUM_START:]) != checksum or len(pixels) != 3 * rows * columns:
        return None
    return Image.frombuffer("RGB", (columns, rows), pixels, "raw", "RGB", 0, 1), height, width


def _write_entry(path: Path, image: Image.Image, height: int, width: int) -> None:
    """Keep an image; two that keep the same one at a time write the same."""
    pixels = image.tobytes()
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            temporary = Path(file.name)
            checked = (
                ENTRY_HEADER.pack(ENTRY_MAGIC, 0, height, width, image.height, image.width)[CHECKSUM_START:] + pixels
            )
            file.write(ENTRY_MAGIC + zlib.crc32(checked).to_bytes(4, "little") + checked)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise _cannot_write_error(path, error.strerror or str(error)) from error


def _cannot_write_error(path: Path, why: str) -> ToastError:
    return ToastError(
        f"The cache {path} could not be written.",
        why,
        "Free some space, set TOAST_CACHE_DIR to another folder, or use images.cache=false.",
    )
