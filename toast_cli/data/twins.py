"""Images that show the same, or nearly: found among as many as a data set has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toast_cli.data.seen import SIDE, Seen

if TYPE_CHECKING:
    import numpy as np

NEAR = 4
"""Bits of 64 by which the perceptual hashes of two images may differ for them to count as nearly the same."""

CLOSE = 8
"""Grey levels of 256 that two thumbnails of the same picture may lie apart at most, in any pixel.

Measured: of 3,003 photographs, all 69 pairs that are one picture lie within 8, and no other pair; of drawn sprites that
are a step of turning, moving or growing apart, and whose hashes are near, one pair in a thousand does.
"""

STRETCHES = ((0, 21), (21, 21), (42, 22))
"""First bit and number of bits of the stretches by which hashes are looked up."""


@dataclass(frozen=True)
class Twins:
    """Two images that look alike, of which the later split holds the second; `mirrored`, if turned left to right.

    `distance` is the number of bits in which their perceptual hashes differ. `copies` says that they are one picture,
    perhaps scaled, compressed or brightened, and not two that resemble each other.
    """

    first: tuple[str, int]
    second: tuple[str, int]
    distance: int = 0
    mirrored: bool = False
    copies: bool = True


def same(seen: Mapping[str, Sequence[Seen]]) -> list[Twins]:
    """Images whose pixels are those of one before them."""
    first: dict[bytes, tuple[str, int]] = {}
    found = []
    for part, images in seen.items():
        for index, image in enumerate(images):
            if image.error:
                continue
            if image.pixels in first:
                found.append(Twins(first[image.pixels], (part, index)))
            else:
                first[image.pixels] = (part, index)
    return found


def nearly_same(seen: Mapping[str, Sequence[Seen]], known: Collection[tuple[str, int]]) -> list[Twins]:
    """Images that look like one of an earlier split or its mirror image, each with the nearest; none in `known`."""
    import numpy as np

    first: dict[int, tuple[str, int]] = {}
    found = []
    for part, images in seen.items():
        looks = [(index, image.look, image.mirrored) for index, image in enumerate(images) if image.look is not None]
        new = [each for each in looks if (part, each[0]) not in known]
        asked = sorted({look for _, *both in new for look in both if look is not None})
        if first and asked:
            earlier = np.array(list(first), dtype=np.uint64)
            distances, places = _nearest(np.array(asked, dtype=np.uint64), earlier)
            row_of = {look: row for row, look in enumerate(asked)}
            for index, *both in new:
                rows = [row_of[look] for look in both if look is not None]
                row = min(rows, key=distances.__getitem__)  # the image as it is, where its mirror image is no nearer
                if distances[row] <= NEAR:
                    part_of, place = first[int(earlier[places[row]])]
                    mirrored = row != rows[0]
                    copies = same_picture(seen[part_of][place], images[index], mirrored)
                    found.append(Twins((part_of, place), (part, index), int(distances[row]), mirrored, copies))
        for index, look, _ in looks:
            first.setdefault(look, (part, index))
    return found


def same_picture(first: Seen, second: Seen, mirrored: bool = False) -> bool:
    """Whether two thumbnails differ in no more than brightness, contrast and `CLOSE` grey levels.

    Perceptual hashes alone do not tell: those of drawn shapes, or of digits, often agree where the shapes do not.
    """
    import numpy as np

    one, two = (np.frombuffer(image.thumbnail, np.uint8).astype(float).reshape(SIDE, SIDE) for image in (first, second))
    two = np.fliplr(two) if mirrored else two
    one, two = one - one.mean(), two - two.mean()
    contrast = (one * two).sum() / max((one * one).sum(), 1)
    return bool(np.abs(two - contrast * one).max() <= CLOSE)


def _nearest(looks: np.ndarray, earlier: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to and place of the nearest of `earlier` [E] for each of `looks` [N]; 64 where none is near.

    Two hashes that differ in at most 4 bits differ in at most one of one of three stretches. So each stretch is looked
    up as it is and with each of its bits turned, in the sorted stretches of the others: no pair is compared that does
    not agree in about 20 bits.
    """
    import numpy as np

    distance, place = np.full(len(looks), 64), np.zeros(len(looks), dtype=np.int64)
    for start, width in STRETCHES:
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
                better = bits < distance[rows]
                distance[rows[better]], place[rows[better]] = bits[better], candidates[better]
                step += 1
                rows = rows[begin[rows] + step < end[rows]]
    return distance, place
