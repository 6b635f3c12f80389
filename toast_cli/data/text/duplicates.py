"""Copies and near-duplicates among texts, in time and memory linear in the text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SHINGLE_BYTES = 12
"""Length of the pieces of a text that are compared, in bytes of UTF-8."""
HASHES, ROWS_PER_BAND = 32, 4
"""Number of minimum hashes of a text, and how many must agree in a band for two texts to be compared."""
MIN_SIMILARITY = 0.75
"""Share of minimum hashes that agree, an estimate of the Jaccard similarity, from which texts are near-duplicates."""
MAX_CANDIDATES_PER_BAND = 4
"""Maximum number of earlier texts that a text is compared with in a band."""
CHUNK_BYTES = 1 << 20
"""Bytes of text that are hashed at once."""


def normalize_text(text: str) -> str:
    """Return a text in lower case and one form of Unicode, with single spaces: copies may differ in these."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def compute_text_key(text: str) -> int:
    """Return a 64-bit key that copies of a text share."""
    return int.from_bytes(blake2b(normalize_text(text).encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def find_first_copies(keys: Iterable[int]) -> list[int]:
    """Return for every text the index of the first text with the same key, which is its own if it is no copy."""
    first: dict[int, int] = {}
    return [first.setdefault(key, index) for index, key in enumerate(keys)]


def count_copies_across_splits(keys: Mapping[str, Sequence[int]]) -> int:
    """Return the number of texts with the key of a text in an earlier split. Splits go from train to test."""
    seen: set[int] = set()
    count = 0
    for part in ("train", "val", "test"):
        own = keys.get(part, ())
        count += sum(key in seen for key in own)
        seen.update(own)
    return count


def format_copies_note(count: int, name: str, own_files: bool = False) -> list[str]:
    """Return the note on `count` texts of the file `name` that are copies of a text in an earlier split.

    `own_files` tells whether splits are files of their own, whose texts cannot move to another split.
    """
    if not count:
        return []
    texts = "1 text" if count == 1 else f"{count:,} texts"
    remedy = (
        "Remove them from one of the files; 'toast data check' lists them."
        if own_files
        else "dataset.group_copies=true keeps copies in one split."
    )
    return [
        f"{texts} of val and test in {name} {'is a copy' if count == 1 else 'are copies'} of a text in an earlier "
        f"split, so results on them say little about new texts. {remedy}"
    ]


def compute_minimum_hashes(texts: Iterable[str]) -> np.ndarray:
    """Return `HASHES` minimum hashes of the shingles of every text, `[N, HASHES]` (Broder, 1997)."""
    import numpy as np

    parts = [_hash_chunk(chunk) for chunk in _iterate_chunks(texts)]
    return np.concatenate(parts) if parts else np.empty((0, HASHES), np.uint64)


def find_near_texts(earlier: np.ndarray, later: np.ndarray) -> dict[int, int]:
    """Return the index of a near-duplicate in `earlier` for every text of `later` that has one, by minimum hashes."""
    import numpy as np

    best = _BestCandidates(earlier, later)
    for start in range(0, HASHES, ROWS_PER_BAND):
        bands = [_mix(hashes[:, start : start + ROWS_PER_BAND]) for hashes in (earlier, later)]
        order = np.argsort(bands[0], kind="stable")
        place = np.searchsorted(bands[0][order], bands[1])
        for step in range(MAX_CANDIDATES_PER_BAND):
            rows = np.flatnonzero(place + step < len(order))
            rows = rows[bands[0][order[place[rows] + step]] == bands[1][rows]]
            best.compare(order[place[rows] + step], rows)
    return best.get_candidates()


def find_near_texts_within(hashes: np.ndarray) -> dict[int, int]:
    """Return the index of an earlier near-duplicate for every text that has one, by minimum hashes."""
    import numpy as np

    best = _BestCandidates(hashes, hashes)
    for start in range(0, HASHES, ROWS_PER_BAND):
        band = _mix(hashes[:, start : start + ROWS_PER_BAND])
        order = np.argsort(band, kind="stable")  # texts with the same number stay in their order
        for step in range(1, MAX_CANDIDATES_PER_BAND + 1):
            candidates, rows = order[:-step], order[step:]
            same = band[candidates] == band[rows]
            best.compare(candidates[same], rows[same])
    return best.get_candidates()


class _BestCandidates:
    """The most similar text of `earlier` for every text of `later` so far; the first one of equally similar ones."""

    def __init__(self, earlier: np.ndarray, later: np.ndarray) -> None:
        self._earlier, self._later = earlier, later
        self._best: dict[int, tuple[float, int]] = {}

    def compare(self, candidates: np.ndarray, rows: np.ndarray) -> None:
        """Compare texts of `earlier` with texts of `later`, both given by their indices, in pairs."""
        similarities = (self._earlier[candidates] == self._later[rows]).mean(1)
        for row, candidate, similarity in zip(rows.tolist(), candidates.tolist(), similarities.tolist(), strict=True):
            if similarity >= MIN_SIMILARITY and (similarity, -candidate) > self._best.get(row, (0.0, 0)):
                self._best[row] = (similarity, -candidate)

    def get_candidates(self) -> dict[int, int]:
        """Return the index of the best text of `earlier` by the index of a text of `later`."""
        return {row: -candidate for row, (_, candidate) in sorted(self._best.items())}


@dataclass(frozen=True)
class NearTexts:
    """The texts that are nearly the same as an earlier one, by name: of an earlier split, and of their own."""

    across_splits: Mapping[str, str]
    within_a_split: Mapping[str, str]


def find_near_texts_by_split(
    splits: Mapping[str, tuple[Sequence[str], Iterable[str]]], within: bool = False
) -> NearTexts:
    """Find the near-duplicates of splits, which have names and texts. `within` searches every split by itself too.

    Memory holds 256 bytes of every text.
    """
    import numpy as np

    across: dict[str, str] = {}
    inside: dict[str, str] = {}
    names: list[str] = []
    earlier = compute_minimum_hashes([])
    for new, texts in splits.values():
        later = compute_minimum_hashes(texts)
        across |= {new[row]: names[index] for row, index in find_near_texts(earlier, later).items()}
        if within:
            inside |= {new[row]: new[index] for row, index in find_near_texts_within(later).items()}
        earlier = np.concatenate([earlier, later])
        names += new
    return NearTexts(across, inside)


def _iterate_chunks(texts: Iterable[str]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for text in texts:
        chunk.append(normalize_text(text).encode(errors="surrogatepass").ljust(SHINGLE_BYTES, b"\0"))
        size += len(chunk[-1])
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _hash_chunk(texts: Sequence[bytes]) -> np.ndarray:
    import numpy as np

    content = np.frombuffer(b"".join(texts) + bytes(SHINGLE_BYTES), np.uint8).astype(np.uint64)
    count = len(content) - SHINGLE_BYTES + 1
    shingles = np.zeros(count, np.uint64)
    for offset in range(SHINGLE_BYTES):  # wraps around at 64 bits
        shingles *= np.uint64(0x100000001B3)
        shingles += content[offset : offset + count]
    shingles ^= shingles >> np.uint64(29)
    shingles *= np.uint64(0xBF58476D1CE4E5B9)
    shingles ^= shingles >> np.uint64(32)
    starts = np.cumsum([0, *(len(text) for text in texts)])
    # The shingles of a text, then those that reach into the next one.
    bounds = np.stack([starts[:-1], starts[1:] - SHINGLE_BYTES + 1], 1).ravel()
    factors = np.random.default_rng(0).integers(0, 1 << 63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return np.stack([np.minimum.reduceat(shingles * factor, bounds)[::2] for factor in factors], 1)


def _mix(rows: np.ndarray) -> np.ndarray:
    """Return one number for every row."""
    import numpy as np

    mixed = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
    return mixed
