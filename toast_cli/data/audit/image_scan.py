"""A scan of all images of a split or a stream: size, hashes, and errors of images that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.data.base import Label, Sample
from toast_cli.data.streams.stream_split import StreamSplit
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from PIL.Image import Image

PLAIN_STD = 2
"""Standard deviation, in grey levels of 256, below which a thumbnail is too uniform to compare."""

THUMBNAIL_SIDE = 16
"""Side, in pixels, of the thumbnail that distinguishes copies from similar images."""


@dataclass(frozen=True)
class ScannedImage:
    """The result of scanning an image.

    Attributes:
        name: name of the image.
        label: class index, label indices or numbers; -1 if unknown.
        width: width in pixels.
        height: height in pixels.
        pixels: hash of the pixels.
        look: perceptual hash; None for a nearly uniform image, whose hash would depend only on rounding.
        mirrored: perceptual hash of the horizontally flipped image; None as for `look`.
        thumbnail: `[THUMBNAIL_SIDE, THUMBNAIL_SIDE]` grey levels.
        empty_mask: whether the mask marks no pixel.
        outside: whether the region of the object exceeds the image.
        classes: classes of the pixels; None if the label belongs to the image.
        remarks: what was left out of the file, as in `open_image`.
        brightest: the largest value of a file of more than 8 bits; None for others.
        error: the reason why the image cannot be read; empty if it can.
    """

    name: str
    label: Label
    width: int = 0
    height: int = 0
    pixels: bytes = b""
    look: int | None = None
    mirrored: int | None = None
    thumbnail: bytes = bytes(THUMBNAIL_SIDE * THUMBNAIL_SIDE)
    empty_mask: bool = False
    outside: bool = False
    classes: tuple[int, ...] | None = None
    remarks: tuple[str, ...] = ()
    brightest: float | None = None
    error: str = ""


@dataclass(frozen=True)
class UnscannedImage:
    """An image to scan."""

    name: str
    label: Label
    load: Callable[[], Sample]
    region: Any = None


def scan_images(split: Any) -> Iterator[ScannedImage]:
    """Scan every image of a split, in order, on all CPU cores.

    Raises:
        ToastError: the split is a stream that ends with an error.
    """
    workers = os.cpu_count() or 1
    images = _iterate_stream(split) if isinstance(split, StreamSplit) else _iterate_files(split)
    with ThreadPoolExecutor(workers) as pool:
        # In windows, because `map` reads all of its input before it yields the first result.
        while window := list(islice(images, 16 * workers)):
            yield from pool.map(_scan_image, window)


def _iterate_files(split: Any) -> Iterator[UnscannedImage]:
    names, labels, regions = split.names, split.labels, getattr(split, "regions", None)
    for index, (name, label) in enumerate(zip(names, labels, strict=True)):
        yield UnscannedImage(name, label, partial(split.load, index), None if regions is None else regions[index])


def _iterate_stream(split: StreamSplit) -> Iterator[UnscannedImage]:
    from toast_cli.data.streams.loader import load_stream_sample

    rows = iter(split.table)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # the library raises arbitrary exceptions on damaged shards and lost connections
            raise ToastError(
                f"Cannot read {split.where} to its end.",
                f"{type(error).__name__}: {error}",
                "Download it again.",
                code="data.broken-stream",
            ) from error
        yield UnscannedImage(split.get_name(row), -1, partial(load_stream_sample, split, row))


def _scan_image(image: UnscannedImage) -> ScannedImage:
    import numpy as np
    from PIL import ImageOps
    from PIL.Image import Resampling

    from toast_cli.data.images.resize import resize_image

    try:
        sample = image.load()
        picture = sample.image
        outside = image.region is not None and not image.region.is_inside(picture.height, picture.width)
    except ToastError as error:
        # The report says that the image cannot be read. Keep the whole message only for other files and errors.
        known = error.why and error.code == "image.unreadable" and Path(image.name).name in error.what
        return ScannedImage(image.name, image.label, error=error.why if known else f"{error.what} {error.why}".rstrip())
    pixels = blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=16).digest()
    small = resize_image(picture.convert("L"), (32, 32), Resampling.LANCZOS)  # the first step of the perceptual hash
    plain = np.asarray(small).std() < PLAIN_STD
    return ScannedImage(
        image.name,
        sample.label,
        picture.width,
        picture.height,
        pixels,
        None if plain else _compute_phash(small),
        None if plain else _compute_phash(ImageOps.mirror(small)),
        small.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Resampling.BOX).tobytes(),
        empty_mask=sample.mask is not None and not sample.mask.any(),
        outside=outside,
        classes=None if sample.classes is None else tuple(np.unique(sample.classes).tolist()),
        remarks=picture.info.get("remarks", ()),
        brightest=picture.info.get("brightest"),
    )


def _compute_phash(small: Image) -> int:
    """Return the 64-bit perceptual hash of a thumbnail."""
    import numpy as np
    from imagehash import phash

    return int.from_bytes(np.packbits(phash(small).hash.flatten()).tobytes(), "big")
