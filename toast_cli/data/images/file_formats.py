"""Supported image formats: those that the installed Pillow decodes, with pillow-heif if that is installed."""

from __future__ import annotations

from functools import cache

UNREADABLE_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow only identifies, or decodes with another program (EPS, with Ghostscript)."""

HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
"""Suffixes of HEIC images, which Pillow decodes only with pillow-heif."""

FORMATS_READ_AS_JPEG = frozenset({"MPO"})
"""Formats that Pillow opens as JPEG: several JPEG pictures in one file, as some cameras and phones write."""


@cache
def get_image_formats() -> tuple[str, ...]:
    """Return Pillow's names of the supported formats."""
    from PIL import Image

    Image.init()
    register_heif()
    return tuple(kind for kind in Image.ID if kind not in UNREADABLE_FORMATS)


@cache
def get_image_suffixes() -> frozenset[str]:
    """Return the file suffixes of the supported formats, in lower case: `.jpg`, ..."""
    from PIL import Image

    known = {*get_image_formats(), *FORMATS_READ_AS_JPEG}
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in known)


def register_heif() -> None:
    """Let Pillow decode HEIC images if pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return
    register_heif_opener()
