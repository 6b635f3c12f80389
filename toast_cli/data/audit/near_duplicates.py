"""Images that show the same, or nearly: found among as many as a data set has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from toast_cli.data.audit.image_scan import THUMBNAIL_SIDE, ScannedImage

if TYPE_CHECKING:
    import numpy as np

MAX_HASH_DISTANCE = 4
"""Bits of 64 by which the perceptual hashes of two images may differ for them to count as nearly the same."""

MAX_GREY_DIFFERENCE = 8
"""Grey levels of 256 that two thumbnails of the same picture may lie apart at most, in any pixel.

Measured: of 3,003 photographs, all 69 pairs that are one picture lie within 8, and no other pair; of drawn sprites that
are a step of turning, moving or growing apart, and whose hashes are near, one pair in a thousand does.
"""

MAX_CANDIDATES = 200
"""Images of near hashes that one is compared with, the nearest first: drawn shapes share their hashes by thousands."""

HASH_BANDS = ((0, 21), (21, 21), (42, 22))
"""First bit and number of bits of the stretches by which hashes are looked up."""


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that look alike, of which the later split holds the second; `mirrored`, if turned left to right.

    `distance` is the number of bits in which their perceptual hashes differ. `copies` says that they are one picture,
    perhaps scaled, compressed or brightened, and not two that resemble each other.
    """

    first: tuple[str, int]
    second: tuple[str, int]
    distance: int = 0
    mirrored: bool = False
    copies: bool = True


def find_exact_duplicates(seen: Mapping[str, Sequence[ScannedImage]]) -> list[DuplicatePair]:
    """Images whose pixels are those of one before them."""
    first: dict[bytes, tuple[str, int]] = {}
    found = []
    for part, images in seen.items():
        for index, image in enumerate(images):
            if image.error:
                continue
            if image.pixels in first:
                found.append(DuplicatePair(first[image.pixels], (part, index)))
            else:
                first[image.pixels] = (part, index)
    return found


def find_near_duplicates(
    seen: Mapping[str, Sequence[ScannedImage]], known: Collection[tuple[str, int]]
) -> list[DuplicatePair]:
    """Images that look like one of an earlier split or its mirror image; none in `known`.

    Each is told with the nearest of those that show the same picture, else with the nearest of all: where hashes agree
    and pictures do not, the copy need not be the first of them.
    """
    import numpy as np

    earlier = _EarlierImages()
    found = []
    for part, images in seen.items():
        looks = [(index, image.look, image.mirrored) for index, image in enumerate(images) if image.look is not None]
        new = [each for each in looks if (part, each[0]) not in known]
        asked = sorted({look for _, *both in new for look in both if look is not None})
        if earlier.rows and asked:
            hashes = np.array(list(earlier.rows), dtype=np.uint64)
            near = dict(zip(asked, _find_near_hashes(np.array(asked, dtype=np.uint64), hashes), strict=True))
            for index, *both in new:
                alike = [[] if look is None else near[look] for look in both]
                if any(alike):
                    found.append(earlier.nearest((part, index), images[index], alike))
        earlier.add(part, images, [(index, look) for index, look, _ in looks])
    return found


class _EarlierImages:
    """The images that later ones are held against: the rows of each hash, and every row's place and thumbnail."""

    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}
        self.places: list[tuple[str, int]] = []
        self.thumbnails: list[bytes] = []

    def add(self, part: str, images: Sequence[ScannedImage], looks: Sequence[tuple[int, int]]) -> None:
        for index, look in looks:
            self.rows.setdefault(look, []).append(len(self.places))
            self.places.append((part, index))
            self.thumbnails.append(images[index].thumbnail)

    def nearest(
        self, second: tuple[str, int], image: ScannedImage, alike: Sequence[Sequence[tuple[int, int]]]
    ) -> DuplicatePair:
        """What an image is told with; `alike` are the (bits, hash) near it as it is, and near its mirror image."""
        best: tuple[bool, int, int, int] | None = None
        for mirrored, near in enumerate(alike):
            taken = list(islice(((bits, row) for bits, look in near for row in self.rows[look]), MAX_CANDIDATES))
            if not taken:
                continue
            copies = match_thumbnails([self.thumbnails[row] for _, row in taken], image.thumbnail, bool(mirrored))
            place = int(copies.argmax())  # the first of them, or 0: nearer ones stand before
            this = (not copies[place], taken[place][0], mirrored, taken[place][1])
            best = this if best is None else min(best, this)
        assert best is not None
        other, bits, mirrored, row = best
        return DuplicatePair(self.places[row], second, bits, bool(mirrored), copies=not other)


def match_thumbnails(others: Sequence[bytes], thumbnail: bytes, mirrored: bool = False) -> np.ndarray:
    """Whether each of other thumbnails [N] differs from one in no more than brightness, contrast and `CLOSE` grey
    levels: `[N]` bool.

    Perceptual hashes alone do not tell: those of drawn shapes, or of digits, often agree where the shapes do not.
    """
    import numpy as np

    two = np.frombuffer(thumbnail, np.uint8).astype(np.float32).reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    one = (np.fliplr(two) if mirrored else two).reshape(-1)
    one = one - one.mean()
    ones = np.frombuffer(b"".join(others), np.uint8).reshape(-1, THUMBNAIL_SIDE * THUMBNAIL_SIDE).astype(np.float32)
    ones -= ones.mean(1, keepdims=True)
    contrast = (ones @ one) / np.maximum((ones * ones).sum(1), 1)
    return np.abs(one - contrast[:, None] * ones).max(1) <= MAX_GREY_DIFFERENCE


def _find_near_hashes(looks: np.ndarray, earlier: np.ndarray) -> list[list[tuple[int, int]]]:
    """For each of `looks` [N] all (bits, hash) of `earlier` [E] that differ in at most `NEAR` bits, nearest first.

    Two hashes that differ in at most 4 bits differ in at most one of one of three stretches. So each stretch is looked
    up as it is and with each of its bits turned, in the sorted stretches of the others: no pair is compared that does
    not agree in about 20 bits.
    """
    import numpy as np

    found: list[dict[int, int]] = [{} for _ in looks]
    for start, width in HASH_BANDS:
        mine, theirs = ((hashes >> np.uint64(start)) & np.uint64((1 << width) - 1) for hashes in (looks, earlier))
        order = np.argsort(theirs, kind="stable")
        theirs = theirs[order]
        for turned in (0, *(1 << bit for bit in range(width))):
            wanted = mine ^ np.uint64(turned)
            begin, end = (np.searchsorted(theirs, wanted, side) for side in ("left", "right"))
            rows = np.flatnonzero(begin < end)
            step = 0
            while len(rows):
                candidates = order[begin[rows] + step]
                bits = np.unpackbits((looks[rows] ^ earlier[candidates]).view(np.uint8).reshape(-1, 8), axis=1).sum(1)
                for place in np.flatnonzero(bits <= MAX_HASH_DISTANCE):
                    found[rows[place]][int(earlier[candidates[place]])] = int(bits[place])
                step += 1
                rows = rows[begin[rows] + step < end[rows]]
    return [sorted((bits, look) for look, bits in each.items()) for each in found]
