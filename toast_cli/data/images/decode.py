"""Decoding of image files to upright RGB images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from toast_cli.data.images.file_formats import get_image_formats
from toast_cli.data.images.files import ImageFile, open_file
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

WHITE_16_BIT = 65_535

LIKELY_WHITES = (255, 1023, 4095, 16_383)
"""Values of white of cameras and scanners that store 8, 10, 12 or 14 bits in files of 16."""

TIFF_BITS_PER_SAMPLE = 258

HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})

HEADER_BYTES = 2048
"""Number of bytes of a file that Pillow does not identify that are searched for its format."""

TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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
    try:
        with open_pillow_file(path) as file:
            remarks = _list_remarks(file)
            deep = any(";16" in str(tile[3]) for tile in getattr(file, "tile", ()))
            image = to_upright_rgb(file, white)
            brightest = image.info.get("brightest")
            if deep and brightest is None:  # Pillow reads only the upper 8 bits of several channels
                brightest = (WHITE_16_BIT // 255) * int(np.asarray(image).max())
            image.info = {"remarks": remarks, **({} if brightest is None else {"brightest": brightest})}
            return image
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


def to_upright_rgb(image: PilImage, white: int | None = None) -> PilImage:
    """Convert an image of any Pillow mode to RGB, turned as its EXIF or XMP orientation says. Do not change `image`.

    Scale grey values of more than 8 bits to 8 bits (Pillow's own conversion clips them). Their value of white is
    `white`, else that of a TIFF file of 12 bits, else 65,535. Composite transparency over white. The result has no
    metadata that would turn it again.

    Raises:
        ValueError: there are no pixels, or pixels are floats, or integers outside of 16 bits, so the value of white is
            unknown.
    """
    if not (image.width and image.height):
        raise ValueError(f"it has no pixels: its size is {image.width}×{image.height}")
    upright = turn_upright(image)
    if upright.mode == "F" or upright.mode.startswith("I"):
        upright = _to_eight_bits(upright, white or _read_white(image))
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    if upright.mode != "RGB":  # convert() would copy it
        upright = upright.convert("RGB")
    if upright is not image:
        upright.info = {key: value for key, value in upright.info.items() if key == "brightest"}
    return upright


def turn_upright(image: PilImage) -> PilImage:
    """Return the image turned as its orientation says, or the image itself if it is upright or its EXIF is damaged.

    `ImageOps.exif_transpose` writes the EXIF block again, which fails on odd values of other tags.
    """
    _load_pixels(image)  # first: a PNG may hold its EXIF after its pixels
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's parser raises arbitrary exceptions on a damaged block
        orientation = 1
    method = TRANSPOSE_BY_ORIENTATION.get(orientation)
    if method is None:
        return image
    upright = image.transpose(method)
    upright.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return upright


def _load_pixels(image: PilImage) -> None:
    """Load an image. Pillow would map the file of an uncompressed TIFF with the sides of the turned image: garbled."""
    name = getattr(image, "filename", "")
    if image.format != "TIFF" or not name:
        image.load()
        return
    mapped: Any = image
    mapped.filename = ""  # which Pillow maps
    try:
        image.load()
    finally:
        mapped.filename = name


def _to_eight_bits(image: PilImage, white: int | None) -> PilImage:
    """Scale grey values from 0..white to 0..255, and keep the largest as `info["brightest"]`."""
    values = np.asarray(image)
    if white is None and image.mode != "F" and values.min() < 0:
        raise ValueError(
            f"it has negative pixel values, down to {values.min():,}, so the values of black and white are unknown; "
            "save it with 8 or unsigned 16 bits, or set images.white, which reads them as black"
        )
    if white is None and (image.mode == "F" or values.max() > WHITE_16_BIT):
        raise ValueError(
            "its 32-bit pixels do not define the value of white; save it with 8 or 16 bits, or set images.white"
        )
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not finite numbers")
    scaled = np.rint(values / ((white or WHITE_16_BIT) / 255)).clip(0, 255).astype(np.uint8)
    grey = Image.fromarray(scaled)
    grey.info["brightest"] = float(values.max())
    if "transparency" in image.info:
        grey.info["transparency"] = image.info["transparency"]
    return grey


def _read_white(image: PilImage) -> int | None:
    """Return the value of white of a TIFF file that packs its grey values in less than 16 bits, else None.

    Its tag MaxSampleValue is not used: in some files it is the brightest value of the image, so it differs among files.
    """
    bits = getattr(image, "tag_v2", {}).get(TIFF_BITS_PER_SAMPLE, (16,))[0]
    return 2**bits - 1 if bits < 16 else None


def _list_remarks(file: PilImage) -> tuple[str, ...]:
    """Return what is left out of a file, in words that complete "3 images: ..."."""
    remarks = []
    if getattr(file, "is_animated", False):
        remarks.append("several frames or pages; only the first is read")
    if file.mode == "CMYK":
        remarks.append("CMYK, converted to RGB without a colour profile")
    return tuple(remarks)


def explain_unknown_format(path: ImageFile) -> str:
    """Return why Pillow cannot identify a file, by its first bytes."""
    with open_file(path) as stream:
        start = stream.read(HEADER_BYTES)
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
