"""Which kinds of image files are read: what the installed Pillow decodes by itself."""

from __future__ import annotations

from functools import cache

UNREADABLE_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow only recognises, or hands to another program (EPS, to Ghostscript)."""


@cache
def get_image_formats() -> tuple[str, ...]:
    """Pillow's names of them."""
    from PIL import Image

    Image.init()
    return tuple(kind for kind in Image.ID if kind not in UNREADABLE_FORMATS)


@cache
def get_image_suffixes() -> frozenset[str]:
    """What their files' names end in: `.jpg`, ..., in lower case."""
    from PIL import Image

    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in get_image_formats())
