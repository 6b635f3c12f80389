"""Search for exact and near duplicates among all images of a data set."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from toast_cli.data.audit.image_scan import THUMBNAIL_SIDE, ScannedImage

if TYPE_CHECKING:
    import numpy as np

MAX_HASH_DISTANCE = 4
"""Maximum number of bits, of 64, in which the perceptual hashes of near duplicates differ."""

MAX_GREY_DIFFERENCE = 8
"""Maximum difference, in grey levels of 256, between two thumbnails of the same picture, at any pixel.

Measured: among 3,003 photographs, exactly the 69 pairs of the same picture differ by at most 8. Among drawn sprites
with near hashes, one step of rotation, position or scale apart, one pair in a thousand does.
"""

MAX_CANDIDATES = 200
"""Maximum number of candidates per image, nearest first: thousands of drawn shapes may share a hash."""

MAX_RELATIVE_DIFFERENCE = 0.04
"""Maximum distance of two thumbnails of the same picture whose hashes differ, at mean 0 and length 1.

The hashes of smooth pictures, such as X-rays, are unstable. Measured: JPEG copies (quality 20) and copies of half size
of blurred pictures are at most 0.035 apart, different ones at least 0.05, drawn sprites one step apart at least 0.1.
"""

MAX_THUMBNAIL_CANDIDATES = 8
"""Maximum number of candidates per image that are looked up by thumbnail."""

HASH_BANDS = ((0, 21), (21, 21), (42, 22))
"""First bit and width of the bands by which hashes are looked up."""


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that are equal or similar, as (split, index).

    Attributes:
        first: the earlier image.
        second: the later image.
        distance: number of bits in which their perceptual hashes differ.
        mirrored: whether one is flipped horizontally.
        copies: whether they are the same picture, possibly scaled, compressed or brightened, or only similar.
    """

    first: tuple[str, int]
    second: tuple[str, int]
    distance: int = 0
    mirrored: bool = False
    copies: bool = True


def find_exact_duplicates(scans: Mapping[str, Sequence[ScannedImage]]) -> list[DuplicatePair]:
    """Return the images with the same pixels as an earlier image."""
    first: dict[bytes, tuple[str, int]] = {}
    found = []
    for part, images in scans.items():
        for index, image in enumerate(images):
            if image.error:
                continue
            if image.pixels in first:
                found.append(DuplicatePair(first[image.pixels], (part, index)))
            else:
                first[image.pixels] = (part, index)
    return found


def find_near_duplicates(
    scans: Mapping[str, Sequence[ScannedImage]], known: Collection[tuple[str, int]]
) -> list[DuplicatePair]:
    """Return the images that look like one of an earlier split, or its mirror image, except those in `known`.

    An image is paired with the nearest copy in the earlier splits, or with the nearest similar image if there is no
    copy. A copy is looked for by its hash, then by its thumbnail.
    """
    import numpy as np

    earlier = _EarlierImages()
    found = []
    for part, images in scans.items():
        looks = [(index, image.look, image.mirrored) for index, image in enumerate(images) if image.look is not None]
        new = [each for each in looks if (part, each[0]) not in known]
        queries = sorted({look for _, *both in new for look in both if look is not None})
        pairs: dict[int, DuplicatePair] = {}
        if earlier.rows and queries:
            hashes = np.array(list(earlier.rows), dtype=np.uint64)
            near = dict(zip(queries, _find_near_hashes(np.array(queries, dtype=np.uint64), hashes), strict=True))
            for index, *both in new:
                matches = [[] if look is None else near[look] for look in both]
                if any(matches):
                    pairs[index] = earlier.find_nearest_pair((part, index), images[index], matches)
            left = [index for index, *_ in new if index not in pairs or not pairs[index].copies]
            pairs |= {pair.second[1]: pair for pair in earlier.find_equal_thumbnails(part, images, left)}
            found += [pairs[index] for index in sorted(pairs)]
        earlier.add(part, images, [(index, look) for index, look, _ in looks])
    return found


class _EarlierImages:
    """The images of earlier splits: rows by hash, with the (split, index) and thumbnail of every row."""

    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}
        self.places: list[tuple[str, int]] = []
        self.thumbnails: list[bytes] = []
        self.looks: list[int] = []

    def add(self, part: str, images: Sequence[ScannedImage], looks: Sequence[tuple[int, int]]) -> None:
        for index, look in looks:
            self.rows.setdefault(look, []).append(len(self.places))
            self.places.append((part, index))
            self.thumbnails.append(images[index].thumbnail)
            self.looks.append(look)

    def find_nearest_pair(
        self, second: tuple[str, int], image: ScannedImage, matches: Sequence[Sequence[tuple[int, int]]]
    ) -> DuplicatePair:
        """Return an image's pair; `matches` are the (bits, hash) near it, and those near its mirror image."""
        best: tuple[bool, int, int, int] | None = None
        for mirrored, near in enumerate(matches):
            candidates = list(islice(((bits, row) for bits, look in near for row in self.rows[look]), MAX_CANDIDATES))
            if not candidates:
                continue
            copies = match_thumbnails([self.thumbnails[row] for _, row in candidates], image.thumbnail, bool(mirrored))
            nearest = int(copies.argmax())  # candidates are sorted: the nearest copy, or 0 if there is none
            candidate = (not copies[nearest], candidates[nearest][0], mirrored, candidates[nearest][1])
            best = candidate if best is None else min(best, candidate)
        assert best is not None
        differs, bits, mirrored, row = best
        return DuplicatePair(self.places[row], second, bits, bool(mirrored), copies=not differs)

    def find_equal_thumbnails(
        self, part: str, images: Sequence[ScannedImage], indices: Sequence[int]
    ) -> Iterator[DuplicatePair]:
        """Yield the pairs of images, or their mirror images, with earlier ones of the same thumbnail."""
        import numpy as np
        from scipy.spatial import cKDTree

        vectors = _to_unit_vectors(self.thumbnails)
        # Equal points would make the search quadratic.
        _, rows = np.unique(_average_blocks(vectors).round(3), axis=0, return_index=True)
        rows = rows[vectors[rows].any(1)]
        if not (len(rows) and len(indices)):
            return
        tree = cKDTree(_average_blocks(vectors[rows]))
        side = (-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        mine = _to_unit_vectors([images[index].thumbnail for index in indices])
        paired = np.asarray(~mine.any(1))  # a thumbnail of one colour is compared with none
        for mirrored in (False, True):
            mine = mine.reshape(side)[:, :, ::-1].reshape(len(mine), -1) if mirrored else mine
            count = min(MAX_THUMBNAIL_CANDIDATES, len(rows))
            _, near = tree.query(
                _average_blocks(mine), np.arange(1, count + 1), distance_upper_bound=MAX_RELATIVE_DIFFERENCE
            )
            for place in np.flatnonzero((near[:, 0] < len(rows)) & ~paired).tolist():
                candidates = rows[near[place][near[place] < len(rows)]]
                distances = np.linalg.norm(vectors[candidates] - mine[place], axis=1)
                row = int(candidates[distances.argmin()])
                image = images[indices[place]]
                if distances.min() > MAX_RELATIVE_DIFFERENCE or not match_thumbnails(
                    [self.thumbnails[row]], image.thumbnail, mirrored
                ):
                    continue
                look = image.mirrored if mirrored else image.look
                bits = 0 if look is None else (look ^ self.looks[row]).bit_count()
                paired[place] = True
                yield DuplicatePair(self.places[row], (part, indices[place]), bits, mirrored)


def _to_unit_vectors(thumbnails: Sequence[bytes]) -> np.ndarray:
    """Return `[N, THUMBNAIL_SIDE ** 2]` thumbnails of mean 0 and length 1; 0 for one of one colour."""
    import numpy as np

    vectors = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(thumbnails), -1).astype(np.float32)
    vectors -= vectors.mean(1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def _average_blocks(vectors: np.ndarray) -> np.ndarray:
    """Project `[N, THUMBNAIL_SIDE ** 2]` vectors to 4 × 4 blocks: `[N, 16]`, no further apart than the vectors."""
    side = THUMBNAIL_SIDE // 4
    return vectors.reshape(-1, 4, side, 4, side).mean((2, 4)).reshape(-1, 16) * side


def match_thumbnails(others: Sequence[bytes], thumbnail: bytes, mirrored: bool = False) -> np.ndarray:
    """Return `[N]` bool: whether each of N thumbnails is the same picture as `thumbnail`.

    Two thumbnails are the same picture if they differ by at most `MAX_GREY_DIFFERENCE` after a linear change of
    brightness and contrast. Perceptual hashes are not sufficient: those of different shapes or digits often agree.
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
    """Return, for each of `looks` [N], the (bits, hash) of `earlier` [E] within `MAX_HASH_DISTANCE`, nearest first.

    If two hashes differ in at most 4 bits, they differ in at most one bit in at least one of three bands. Each band is
    therefore looked up as it is, and with each of its bits flipped, in the sorted bands of `earlier`. Only pairs that
    agree in about 20 bits are compared.
    """
    import numpy as np

    found: list[dict[int, int]] = [{} for _ in looks]
    for start, width in HASH_BANDS:
        mine, theirs = ((hashes >> np.uint64(start)) & np.uint64((1 << width) - 1) for hashes in (looks, earlier))
        order = np.argsort(theirs, kind="stable")
        theirs = theirs[order]
        for flipped in (0, *(1 << bit for bit in range(width))):
            query = mine ^ np.uint64(flipped)
            begin, end = (np.searchsorted(theirs, query, side) for side in ("left", "right"))
            rows = np.flatnonzero(begin < end)
            step = 0
            while len(rows):
                candidates = order[begin[rows] + step]
                bits = np.unpackbits((looks[rows] ^ earlier[candidates]).view(np.uint8).reshape(-1, 8), axis=1).sum(1)
                for match in np.flatnonzero(bits <= MAX_HASH_DISTANCE):
                    found[rows[match]][int(earlier[candidates[match]])] = int(bits[match])
                step += 1
                rows = rows[begin[rows] + step < end[rows]]
    return [sorted((bits, look) for look, bits in each.items()) for each in found]
