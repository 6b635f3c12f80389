"""Conversion of decoded images to upright RGB: orientation, deep grey values, transparency. Needs Pillow alone."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from PIL import ExifTags, Image

WHITE_16_BIT = 65_535

TIFF_BITS_PER_SAMPLE = 258

TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_upright_rgb(image: Image.Image, white: int | None = None) -> Image.Image:
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


def turn_upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its orientation says, or the image itself if it is upright or its EXIF is damaged.

    `ImageOps.exif_transpose` writes the EXIF block again, which fails on odd values of other tags.
    """
    _load_pixels(image)  # first: a PNG may hold its EXIF after its pixels
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's parser raises arbitrary exceptions on a damaged block
        orientation = 1
    if orientation is None:
        orientation = _find_orientation(image.info.get("exif", b""))
    method = TRANSPOSE_BY_ORIENTATION.get(orientation)
    if method is None:
        return image
    upright = image.transpose(method)
    upright.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return upright


def _find_orientation(block: bytes) -> int:
    """Return the orientation in an EXIF block, 1 without one. Pillow before 13 stops at the first damaged entry."""
    tiff = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (entries,) = struct.unpack_from(order + "H", tiff, start)
    for place in range(start + 2, min(start + 2 + 12 * entries, len(tiff) - 11), 12):
        tag, kind, count = struct.unpack_from(order + "HHI", tiff, place)
        if tag == ExifTags.Base.Orientation and kind in (3, 4) and count == 1:
            return int(struct.unpack_from(order + {3: "H", 4: "I"}[kind], tiff, place + 8)[0])
    return 1


def _load_pixels(image: Image.Image) -> None:
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


def _to_eight_bits(image: Image.Image, white: int | None) -> Image.Image:
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


def _read_white(image: Image.Image) -> int | None:
    """Return the value of white of a TIFF file that packs its grey values in less than 16 bits, else None.

    Its tag MaxSampleValue is not used: in some files it is the brightest value of the image, so it differs among files.
    """
    bits = getattr(image, "tag_v2", {}).get(TIFF_BITS_PER_SAMPLE, (16,))[0]
    return 2**bits - 1 if bits < 16 else None
