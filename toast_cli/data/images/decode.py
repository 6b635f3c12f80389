"""From an image file to upright RGB pixels, whatever the file holds; or one clear error that names it."""

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

# Pillow warns of a large image without saying of which file; here it is refused by name, see `pillow_file`.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Likewise; an image whose EXIF cannot be read is shown as it lies there.
warnings.filterwarnings("ignore", message="Corrupt EXIF data")


def open_image(path: ImageFile) -> PilImage:
    """The image as RGB, turned upright as its EXIF orientation says; of an animation, the first frame.

    Transparent pixels are shown on white.

    Raises:
        ToastError: the file is missing, not an image, damaged, too large to be safe, or of unknown brightness range.
    """
    try:
        with open_pillow_file(path) as file:
            ImageOps.exif_transpose(file, in_place=True)  # else it copies what is upright already
            return to_rgb(file)
    except UnidentifiedImageError as error:
        raise _unreadable_error(path, "It is not an image, or of a format that this Pillow cannot decode.") from error
    except Image.DecompressionBombError as error:
        raise _unreadable_error(path, f"It is suspiciously large: {error}") from error
    except OSError as error:
        raise _unreadable_error(path, error.strerror or str(error)) from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them trip over
        raise _unreadable_error(path, f"{type(error).__name__}: {error}") from error


@contextmanager
def open_pillow_file(path: ImageFile) -> Iterator[PilImage]:
    """The file as Pillow has it; its pixels are not decoded yet.

    Raises:
        OSError: it is not there, no regular file, or not an image.
        DecompressionBombError: it has more pixels than `Image.MAX_IMAGE_PIXELS`, from where on Pillow itself warns.
    """
    with open_file(path) as stream, Image.open(stream, formats=get_image_formats()) as file:
        if Image.MAX_IMAGE_PIXELS is not None and file.width * file.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(
                f"{file.width:,}×{file.height:,} pixels, and at most {Image.MAX_IMAGE_PIXELS:,} are read; "
                "save it smaller"
            )
        yield file


def to_rgb(image: PilImage) -> PilImage:
    """Any Pillow mode as RGB.

    16-bit greys are scaled to 8 bits (Pillow's own conversion clips them), transparency is laid over white.

    Raises:
        ValueError: 32-bit pixels beyond 16 bits, or floats: nothing says which value is white.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _to_eight_bits(image: PilImage) -> PilImage:
    """Grey values 0..65535 scaled to 0..255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > WHITE_16_BIT:
        raise ValueError("its 32-bit pixels do not say which value is white; save it with 8 or 16 bits")
    return Image.fromarray(np.rint(values / (WHITE_16_BIT / 255)).astype(np.uint8))


def _unreadable_error(path: ImageFile, why: str) -> ToastError:
    return ToastError(
        f"The image {path} cannot be read.",
        why,
        "Replace the file or remove it. 'toast data check' finds all such files; images.on_error=skip leaves them out, "
        "counts and lists them.",
        code="image.unreadable",
    )
