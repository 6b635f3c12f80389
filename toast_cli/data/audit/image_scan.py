"""Every image of a split, or of a stream, read once: its size, what it shows, or why it cannot be read."""

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

from toast_cli.data.base import Sample
from toast_cli.data.streams.dataset import StreamSplit
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from PIL.Image import Image

PLAIN_STD = 2
"""Standard deviation, in grey levels of 256, below which a thumbnail shows nothing to compare."""

THUMBNAIL_SIDE = 16
"""Pixels of a side of the thumbnail by which images that look alike are told from copies."""


@dataclass(frozen=True)
class ScannedImage:
    """What one image came to: its size, a hash of its pixels, a perceptual hash; or `error`, why it cannot be read.

    `look` is None where the image is of one colour, or nearly: its perceptual hash would be that of rounding.
    `mirrored` is the perceptual hash of its mirror image, left to right; `thumbnail` `[SIDE, SIDE]` grey levels.
    `outside` says that what marks its object reaches out of it. `classes` are those of its pixels; None where it is
    the image that is labelled. `label` is -1 where it is not known.
    """

    name: str
    label: int
    width: int = 0
    height: int = 0
    pixels: bytes = b""
    look: int | None = None
    mirrored: int | None = None
    thumbnail: bytes = bytes(THUMBNAIL_SIDE * THUMBNAIL_SIDE)
    empty_mask: bool = False
    outside: bool = False
    classes: tuple[int, ...] | None = None
    error: str = ""


@dataclass(frozen=True)
class UnscannedImage:
    """An image before it is read."""

    name: str
    label: int
    load: Callable[[], Sample]
    region: Any = None


def scan_images(split: Any) -> Iterator[ScannedImage]:
    """Read every image of a split once, in order, on all cores.

    Raises:
        ToastError: it is a stream that breaks off.
    """
    workers = os.cpu_count() or 1
    images = _iterate_stream(split) if isinstance(split, StreamSplit) else _iterate_files(split)
    with ThreadPoolExecutor(workers) as pool:
        # A window at a time: a pool's own map would take in every image before the first is asked for.
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
        except Exception as error:  # the library raises whatever a damaged shard or a lost line makes it trip over
            raise ToastError(
                f"{split.where} breaks off.",
                f"{type(error).__name__}: {error}",
                "Fetch it anew.",
                code="data.broken-stream",
            ) from error
        yield UnscannedImage(split.name_of(row), -1, partial(load_stream_sample, split, row))


def _scan_image(image: UnscannedImage) -> ScannedImage:
    import numpy as np
    from PIL import ImageOps
    from PIL.Image import Resampling

    try:
        sample = image.load()
        shown = sample.image
        outside = image.region is not None and not image.region.fits(shown.height, shown.width)
    except ToastError as error:
        # That it cannot be read is said of all of them; of what fails in another file or otherwise, all is.
        known = error.why and error.code == "image.unreadable" and Path(image.name).name in error.what
        return ScannedImage(image.name, image.label, error=error.why if known else f"{error.what} {error.why}".rstrip())
    pixels = blake2b(repr(shown.size).encode() + shown.tobytes(), digest_size=16).digest()
    small = shown.convert("L").resize((32, 32), Resampling.LANCZOS)  # as the perceptual hash begins
    plain = np.asarray(small).std() < PLAIN_STD
    return ScannedImage(
        image.name,
        sample.label,
        shown.width,
        shown.height,
        pixels,
        None if plain else _compute_phash(small),
        None if plain else _compute_phash(ImageOps.mirror(small)),
        small.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Resampling.BOX).tobytes(),
        empty_mask=sample.mask is not None and not sample.mask.any(),
        outside=outside,
        classes=None if sample.classes is None else tuple(np.unique(sample.classes).tolist()),
    )


def _compute_phash(small: Image) -> int:
    """The perceptual hash of a thumbnail, 64 bits."""
    import numpy as np
    from imagehash import phash

    return int.from_bytes(np.packbits(phash(small).hash.flatten()).tobytes(), "big")
