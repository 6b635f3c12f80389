"""What would spoil a run, found before it: every image of a data set is read once and held against the others."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from statistics import median
from typing import Any

from toast_cli.data.source import DataSet, ImageSplit
from toast_cli.data.split import listed
from toast_cli.data.tree import readable
from toast_cli.errors import ToastError

NEAR = 4
"""Bits of 64 by which the perceptual hashes of two images may differ for them to count as nearly the same."""

SMALL = 32
"""Pixels of the shorter side below which an image shows little."""

IMBALANCE = 10
"""How many times more images the largest class may have than the smallest before it is said."""

SHOWN = 100
"""Pairs and files of a kind that a report names; all are counted."""

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Seen:
    """What one image came to: its size, a hash of its pixels, a perceptual hash; or `error`, why it cannot be read.

    `classes` are those of its pixels; None where it is the image that is labelled.
    """

    width: int = 0
    height: int = 0
    pixels: bytes = b""
    look: int = 0
    empty_mask: bool = False
    classes: tuple[int, ...] | None = None
    error: str = ""


@dataclass(frozen=True)
class Twins:
    """Two images that show the same, of which the later split holds the second."""

    first: tuple[str, int]
    second: tuple[str, int]
    distance: int = 0


Track = Callable[[Iterable[Any], int, str], Iterable[Any]]


def check(data: DataSet, splits: Mapping[str, ImageSplit], track: Track) -> dict[str, Any]:
    """The report on a data set, ready for JSON: what each split holds, duplicates, `problems` and `warnings`.

    Where pixels are labelled, an image is of every class that occurs in it.

    A problem spoils a run: an image that cannot be read, an image of one split that is also in another. Warnings are
    for a human to judge. `track(items, total, what)` passes items through and shows progress.
    """
    splits = {part: splits[part] for part in PARTS if part in splits}
    seen = {part: list(track(look_at(split), len(split), f"reading {part}")) for part, split in splits.items()}
    same = _same(seen)
    across = [twins for twins in same if twins.first[0] != twins.second[0]]
    inside = [twins for twins in same if twins.first[0] == twins.second[0]]
    near = _near(seen, {twins.second for twins in across})

    def told(twins: Twins) -> dict[str, Any]:
        places = {"first": twins.first, "second": twins.second}
        named = {key: f"{part}: {readable(splits[part].names[index])}" for key, (part, index) in places.items()}
        labels = [(splits[part].labels[index], seen[part][index].classes) for part, index in places.values()]
        return {**named, "same_class": labels[0] == labels[1], "distance": twins.distance}

    pairs = {"across_splits": across, "within_a_split": inside, "nearly_across_splits": near}
    report: dict[str, Any] = {
        "classes": len(data.classes),
        "splits": {part: _of_split(split, seen[part], data.classes) for part, split in splits.items()},
        "duplicates": {
            kind: {"count": len(found), "pairs": [told(twins) for twins in found[:SHOWN]]}
            for kind, found in pairs.items()
        },
        "notes": list(data.notes),
    }
    other_class = sum(not told(twins)["same_class"] for twins in same)
    labels_pixels = any(image.classes is not None for image in chain(*seen.values()))
    return {**report, "problems": _problems(report), "warnings": _warnings(report, other_class, labels_pixels)}


def look_at(split: ImageSplit) -> Iterator[Seen]:
    """Read every image of a split once, in order, on all cores."""
    workers = os.cpu_count() or 1
    window = 16 * workers  # a pool's own map would take in every image before the first is asked for
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(split), window):
            yield from pool.map(lambda index: _look(split, index), range(start, min(start + window, len(split))))


def _look(split: ImageSplit, index: int) -> Seen:
    import numpy as np
    from imagehash import phash

    try:
        sample = split.load(index)
    except ToastError as error:
        return Seen(error=error.why or error.what)
    image = sample.image
    pixels = blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()
    bits = np.packbits(phash(image).hash.flatten())
    empty = sample.mask is not None and not sample.mask.any()
    classes = None if sample.classes is None else tuple(value for value in np.unique(sample.classes).tolist())
    return Seen(image.width, image.height, pixels, int.from_bytes(bits.tobytes(), "big"), empty, classes)


def _same(seen: Mapping[str, Sequence[Seen]]) -> list[Twins]:
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


def _near(seen: Mapping[str, Sequence[Seen]], known: set[tuple[str, int]]) -> list[Twins]:
    """Images that look like one of an earlier split, each with the nearest.

    Hashes that differ in NEAR bits agree in at least one of NEAR + 1 stretches: only those that do are compared.
    """
    earlier: dict[tuple[int, int], list[tuple[int, str, int]]] = {}
    found = []
    for part, images in seen.items():
        readable = [(index, image.look) for index, image in enumerate(images) if not image.error]
        for index, look in readable:
            if (part, index) in known:
                continue
            candidates = set(chain.from_iterable(earlier.get(stretch, ()) for stretch in _stretches(look)))
            distances = [((look ^ other).bit_count(), (split, number)) for other, split, number in candidates]
            if distances and min(distances)[0] <= NEAR:
                distance, nearest = min(distances)
                found.append(Twins(nearest, (part, index), distance))
        for index, look in readable:
            for stretch in _stretches(look):
                earlier.setdefault(stretch, []).append((look, part, index))
    return found


def _stretches(look: int) -> Iterator[tuple[int, int]]:
    count = NEAR + 1
    for number in range(count):
        begin, end = 64 * number // count, 64 * (number + 1) // count
        yield number, look >> begin & (1 << end - begin) - 1


def _of_split(split: ImageSplit, seen: Sequence[Seen], classes: Sequence[str]) -> dict[str, Any]:
    sizes = Counter(chain(split.labels, *(image.classes for image in seen if image.classes is not None)))
    counts = [sizes.get(label, 0) for label in range(len(classes))]
    good = [image for image in seen if not image.error]
    unreadable = [{"name": readable(split.names[i]), "why": image.error} for i, image in enumerate(seen) if image.error]

    def spread(values: Sequence[int]) -> dict[str, float] | None:
        return {"least": min(values), "median": median(values), "most": max(values)} if values else None

    return {
        "images": len(split),
        "unreadable": unreadable,
        "images_per_class": spread(counts),
        "empty_classes": [name for name, count in zip(classes, counts, strict=True) if not count],
        "width": spread([image.width for image in good]),
        "height": spread([image.height for image in good]),
        "small": sum(min(image.width, image.height) < SMALL for image in good),
        "empty_masks": sum(image.empty_mask for image in good),
        "unlabelled": sum(image.classes is not None and min(image.classes) >= len(classes) for image in good),
    }


def _problems(report: Mapping[str, Any]) -> list[str]:
    problems = []
    for part, found in report["splits"].items():
        if found["unreadable"]:
            problems.append(f"{part}: {len(found['unreadable']):,} of {found['images']:,} images cannot be read")
    across = report["duplicates"]["across_splits"]["count"]
    if across:
        problems.append(f"{_images(across, 'is', 'are')} in two splits: what is measured there was seen before")
    return problems


def _warnings(report: Mapping[str, Any], other_class: int, labels_pixels: bool) -> list[str]:
    warnings = []
    near = report["duplicates"]["nearly_across_splits"]["count"]
    if near:
        alike = f"nearly like one of an earlier split (at most {NEAR} of 64 bits differ)"
        warnings.append(f"{_images(near, 'looks', 'look')} {alike}")
    inside = report["duplicates"]["within_a_split"]["count"]
    if inside:
        warnings.append(f"{_images(inside, 'is', 'are')} in a split more than once")
    if other_class:
        warnings.append(f"{_images(other_class, 'has', 'have')} another class than an earlier copy")
    for part, found in report["splits"].items():
        spread = found["images_per_class"]
        if found["empty_classes"]:
            warnings.append(f"{part}: no image of {listed(found['empty_classes'])}")
        elif part == "train" and not labels_pixels and spread["most"] > IMBALANCE * spread["least"]:
            warnings.append(
                f"{part}: the largest class has {spread['most']:,} images, the smallest {spread['least']:,}: accuracy "
                "will favour the large ones"
            )
        if found["small"]:
            warnings.append(f"{part}: {_images(found['small'], 'is', 'are')} smaller than {SMALL} pixels")
        if found["unlabelled"]:
            warnings.append(f"{part}: {_images(found['unlabelled'], 'has', 'have')} no pixel with a class")
        if found["empty_masks"]:
            warnings.append(f"{part}: {_images(found['empty_masks'], 'has', 'have')} an empty mask")
    return warnings


def _images(count: int, one: str, several: str) -> str:
    return f"{count:,} image {one}" if count == 1 else f"{count:,} images {several}"
