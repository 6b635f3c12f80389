"""Decoding of image files to upright RGB images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from toast_cli.data.images.file_formats import get_image_formats
from toast_cli.data.images.files import ImageFile, open_file
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

WHITE_16_BIT = 65_535

# Pillow's warning about a large image does not name the file; `open_pillow_file` raises an error that does.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# This warning does not name the file either; an image whose EXIF data cannot be read is not rotated.
warnings.filterwarnings("ignore", message="Corrupt EXIF data")


def open_image(path: ImageFile) -> PilImage:
    """Decode an image to RGB and apply its EXIF orientation. Decode only the first frame of an animation.

    Transparent pixels are composited over white.

    Raises:
        ToastError: the file is missing, is not an image, is damaged, is too large to decode safely, or has an unknown
            brightness range.
    """
    try:
        with open_pillow_file(path) as file:
            ImageOps.exif_transpose(file, in_place=True)  # not in place, it copies upright images too
            return to_rgb(file)
    except UnidentifiedImageError as error:
        raise _unreadable_error(
            path, "It is not an image, or has a format that this version of Pillow cannot decode."
        ) from error
    except Image.DecompressionBombError as error:
        raise _unreadable_error(path, f"It is too large: {error}") from error
    except OSError as error:
        raise _unreadable_error(path, error.strerror or str(error)) from error
    except Exception as error:  # Pillow's decoders raise arbitrary exceptions on damaged files
        raise _unreadable_error(path, f"{type(error).__name__}: {error}") from error


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


def to_rgb(image: PilImage) -> PilImage:
    """Convert an image of any Pillow mode to RGB.

    Scale 16-bit grey values to 8 bits (Pillow's own conversion clips them). Composite transparency over white.

    Raises:
        ValueError: pixels are floats, or integers outside of 16 bits, so the value of white is unknown.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() would copy it


def _to_eight_bits(image: PilImage) -> PilImage:
    """Scale grey values from 0..65535 to 0..255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > WHITE_16_BIT:
        raise ValueError("its 32-bit pixels do not define the value of white; save it with 8 or 16 bits")
    return Image.fromarray(np.rint(values / (WHITE_16_BIT / 255)).astype(np.uint8))


def _unreadable_error(path: ImageFile, why: str) -> ToastError:
    return ToastError(
        f"Cannot read the image {path}.",
        why,
        "Replace the file or remove it. 'toast data check' finds all such files; images.on_error=skip leaves them out "
        "and lists them.",
        code="image.unreadable",
    )
