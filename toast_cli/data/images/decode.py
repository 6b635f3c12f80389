"""Decoding of image files to upright RGB images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from toast_cli.data.images.file_formats import get_image_formats
from toast_cli.data.images.files import ImageFile, open_file
from toast_cli.data.images.upright import WHITE_16_BIT, to_upright_rgb
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

LIKELY_WHITES = (255, 1023, 4095, 16_383)
"""Values of white of cameras and scanners that store 8, 10, 12 or 14 bits in files of 16."""

HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})

FILE_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""Last bytes of a complete file, by format. A file with other last bytes may be complete too."""
END_BYTES = 256

HEADER_BYTES = 2048
"""Number of bytes of a file that Pillow does not identify that are searched for its format."""

# Pillow's warning about a large image does not name the file; `open_pillow_file` raises an error that does.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# This warning does not name the file either; an image whose EXIF data cannot be read is not rotated.
warnings.filterwarnings("ignore", message="Corrupt EXIF data")


def open_image(path: ImageFile, white: int | None = None) -> PilImage:
    """Decode an image file to upright RGB, as `to_upright_rgb` does. Decode only the first frame of an animation.

    The `info` of the image is what `data check` reports: `remarks` on what was left out of the file and, for more than
    8 bits, its `brightest` value.

    Raises:
        ToastError: the file is missing, is not an image, is damaged, is too large to decode safely, or has an unknown
            brightness range.
    """
    with _convert_errors(path), open_pillow_file(path) as file:
        remarks = _list_remarks(file)
        deep = any(";16" in str(tile[3]) for tile in getattr(file, "tile", ()))
        image = to_upright_rgb(file, white)
        brightest = image.info.get("brightest")
        if deep and brightest is None:  # Pillow reads only the upper 8 bits of several channels
            brightest = (WHITE_16_BIT // 255) * int(np.asarray(image).max())
        image.info = {"remarks": remarks, **({} if brightest is None else {"brightest": brightest})}
        return image
    raise AssertionError("errors are converted, not suppressed")


def check_image_file(path: ImageFile, white: int | None = None) -> None:
    """Check that the header of an image file can be read. Decode its pixels only if its end seems to be missing.

    Raises:
        ToastError: as in `open_image`.
    """
    with _convert_errors(path):
        with open_pillow_file(path) as file:
            end = FILE_ENDS.get(file.format or "")
        complete = end is None or not isinstance(path, Path) or _read_end(path).endswith(end)
    if not complete:
        open_image(path, white)


def _read_end(path: Path) -> bytes:
    """Return the end of a file, without padding."""
    with path.open("rb") as stream:
        stream.seek(-min(END_BYTES, path.stat().st_size), os.SEEK_END)
        return stream.read().rstrip(b"\0")


@contextmanager
def _convert_errors(path: ImageFile) -> Iterator[None]:
    """Convert the errors of opening and decoding an image file."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise _make_unreadable_error(path, explain_unknown_format(path)) from error
    except Image.DecompressionBombError as error:
        raise _make_unreadable_error(path, f"It is too large: {error}") from error
    except OSError as error:
        raise _make_unreadable_error(path, error.strerror or str(error)) from error
    except Exception as error:  # Pillow's decoders raise arbitrary exceptions on damaged files
        raise _make_unreadable_error(path, f"{type(error).__name__}: {error}") from error


@contextmanager
def open_pillow_file(path: ImageFile) -> Iterator[PilImage]:
    """Open an image file with Pillow, without decoding its pixels.

    Raises:
        OSError: the file does not exist, is not a regular file, or is not an image.
        DecompressionBombError: it has more pixels than `Image.MAX_IMAGE_PIXELS`, where Pillow itself only warns.
    """
    with open_file(path) as stream, Image.open(stream, formats=get_image_formats()) as file:
        if Image.MAX_IMAGE_PIXELS is not None and file.width * file.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(
                f"it has {file.width:,}×{file.height:,} pixels, the maximum is {Image.MAX_IMAGE_PIXELS:,}; "
                "save it at a smaller size"
            )
        yield file


def _list_remarks(file: PilImage) -> tuple[str, ...]:
    """Return what is left out of a file, in words that complete "3 images: ..."."""
    remarks = []
    if getattr(file, "is_animated", False):
        remarks.append("several frames or pages; only the first is read")
    if file.mode == "CMYK":
        remarks.append("CMYK, converted to RGB without a colour profile")
    return tuple(remarks)


def explain_unknown_format(path: ImageFile) -> str:
    """Return why Pillow cannot identify a file."""
    with open_file(path) as stream:
        return explain_first_bytes(stream.read(HEADER_BYTES))


def explain_first_bytes(start: bytes) -> str:
    """Return why Pillow cannot identify a file with these first bytes."""
    if not start:
        return "It is empty, and not an image."
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
        return "It is a HEIC image, which Pillow decodes only with pillow-heif. Run: pip install pillow-heif"
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "It is a JPEG XL image, which Pillow does not decode. Convert it to JPEG or PNG."
    if start.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer instead of the image itself. Run 'git lfs pull' in its repository."
    if start.startswith(b"%PDF"):
        return "It is a PDF document. Convert its pages to PNG."
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<") and any(tag in text for tag in (b"<html", b"<!doctype html", b"<head", b"<body")):
        return "It is an HTML page: the download failed or needs a login. Download the image again."
    if text.startswith(b"<") and b"<svg" in text:
        return "It is an SVG drawing, which Pillow does not decode. Convert it to PNG."
    if text.startswith((b"<?xml", b"{")):
        return f"It is {'XML' if text.startswith(b'<') else 'JSON'} text, for example the error of a failed download."
    return "It is not an image, or has a format that this version of Pillow cannot decode."


def guess_white(brightest: float | None) -> int | None:
    """Return the value of white of 16-bit images that have no value above `brightest`; None if they use their bits."""
    return next((white for white in LIKELY_WHITES if brightest is not None and brightest <= white), None)


def _make_unreadable_error(path: ImageFile, why: str) -> ToastError:
    return ToastError(
        f"Cannot read the image {path}.",
        why,
        "Replace the file or remove it. 'toast data check' finds all such files; images.on_error=skip leaves them out "
        "and lists them.",
        code="image.unreadable",
    )
