"""What would spoil a run, found before it: every image of a data set is read once and held against the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from statistics import median
from typing import Any

from toast_cli.data.audit.image_scan import ScannedImage, scan_images
from toast_cli.data.audit.near_duplicates import (
    MAX_HASH_DISTANCE,
    DuplicatePair,
    find_exact_duplicates,
    find_near_duplicates,
)
from toast_cli.data.base import DataSet
from toast_cli.data.images.folder_scan import to_printable_name
from toast_cli.data.splits import format_class_names

SMALL_SIDE = 32
"""Pixels of the shorter side below which an image shows little."""

IMBALANCE_RATIO = 10
"""How many times more images the largest class may have than the smallest before it is said."""

MAX_LISTED = 100
"""Pairs and files of a kind that a report names; all are counted."""

REPORTED_SPLITS = ("train", "val", "test")


ProgressTracker = Callable[[Iterable[Any], int, str], Iterable[Any]]


def check_dataset(data: DataSet, track: ProgressTracker) -> dict[str, Any]:
    """The report on a data set of images, ready for JSON: what each split holds, duplicates, `problems`, `warnings`.

    Where pixels are labelled, an image is of every class that occurs in it.

    A problem spoils a run: an image that cannot be read, an image of one split that is also in another, there perhaps
    scaled, compressed or mirrored, an image under two classes, a stream of another length than was said. Warnings are
    for a human to judge. `track(items, total, what)` passes items through and shows progress.

    Raises:
        ToastError: a stream breaks off.
    """
    splits = {part: data.splits[part] for part in REPORTED_SPLITS if part in data.splits}
    seen = {part: list(track(scan_images(split), len(split), f"reading {part}")) for part, split in splits.items()}
    copies = find_exact_duplicates(seen)
    across = [twins for twins in copies if twins.first[0] != twins.second[0]]
    inside = [twins for twins in copies if twins.first[0] == twins.second[0]]
    near = find_near_duplicates(seen, {twins.second for twins in across})
    changed = [twins for twins in near if twins.copies]
    alike = [twins for twins in near if not twins.copies]

    def told(twins: DuplicatePair) -> dict[str, Any]:
        first, second = (seen[part][index] for part, index in (twins.first, twins.second))
        return {
            "first": f"{twins.first[0]}: {to_printable_name(first.name)}",
            "second": f"{twins.second[0]}: {to_printable_name(second.name)}",
            "same_class": (first.label, first.classes) == (second.label, second.classes),
            "distance": twins.distance,
            "mirrored": twins.mirrored,
        }

    def of(found: Sequence[DuplicatePair]) -> dict[str, Any]:
        pairs = [told(twins) for twins in found]
        # Those that contradict each other come first: of many, only some are named.
        pairs.sort(key=lambda pair: pair["same_class"])
        others = sum(not pair["same_class"] for pair in pairs)
        return {"count": len(pairs), "of_another_class": others, "pairs": pairs[:MAX_LISTED]}

    labels_pixels = any(image.classes is not None for image in chain(*seen.values()))
    report: dict[str, Any] = {
        "classes": len(data.classes),
        "splits": {part: _summarize_split(len(split), seen[part], data.classes) for part, split in splits.items()},
        "duplicates": {
            "across_splits": of(across),
            "changed_across_splits": of(changed),
            "within_a_split": of(inside),
            "nearly_across_splits": of(alike),
        },
        "notes": list(data.notes),
    }
    return {**report, "problems": _list_problems(report), "warnings": _list_warnings(report, labels_pixels)}


def _summarize_split(said: int, seen: Sequence[ScannedImage], classes: Sequence[str]) -> dict[str, Any]:
    """What a split of `said` images holds."""
    sizes = Counter(chain.from_iterable((image.label,) if image.classes is None else image.classes for image in seen))
    counts = [sizes.get(label, 0) for label in range(len(classes))]
    good = [image for image in seen if not image.error]
    unreadable = [{"name": to_printable_name(image.name), "why": image.error} for image in seen if image.error]

    def spread(values: Sequence[int]) -> dict[str, float] | None:
        return {"least": min(values), "median": median(values), "most": max(values)} if values else None

    return {
        "images": len(seen),
        "said": said,
        "unreadable": unreadable,
        "images_per_class": spread(counts),
        "images_of_class": dict(zip(classes, counts, strict=True)),
        "empty_classes": [name for name, count in zip(classes, counts, strict=True) if not count],
        "width": spread([image.width for image in good]),
        "height": spread([image.height for image in good]),
        "small": sum(min(image.width, image.height) < SMALL_SIDE for image in good),
        "of_one_colour": sum(image.look is None for image in good),
        "empty_masks": sum(image.empty_mask for image in good),
        "outside": [to_printable_name(image.name) for image in good if image.outside],
        "unlabelled": sum(image.classes is not None and min(image.classes) >= len(classes) for image in good),
    }


def _list_problems(report: Mapping[str, Any]) -> list[str]:
    problems = []
    for part, found in report["splits"].items():
        if found["unreadable"]:
            problems.append(f"{part}: {len(found['unreadable']):,} of {found['images']:,} images cannot be read")
        if found["images"] != found["said"]:
            problems.append(f"{part}: {found['images']:,} images are there, where {found['said']:,} were said to be")
    found = report["duplicates"]
    across, changed, inside = found["across_splits"], found["changed_across_splits"], found["within_a_split"]
    if across["count"]:
        shared = _format_image_count(across["count"], "is", "are")
        problems.append(f"{shared} in two splits: what is measured there was seen before")
    if changed["count"]:
        shown = _format_image_count(changed["count"], "shows", "show")
        problems.append(f"{shown} the same as one of an earlier split, but scaled, compressed, brightened or mirrored")
    if others := across["of_another_class"] + changed["of_another_class"]:
        contradicted = _format_image_count(others, "has", "have")
        problems.append(f"{contradicted} another class than the same image in another split: one of the two is wrong")
    if inside["of_another_class"]:
        contradicted = _format_image_count(inside["of_another_class"], "has", "have")
        problems.append(f"{contradicted} another class than an earlier copy in the same split: one of the two is wrong")
    return problems


def _list_warnings(report: Mapping[str, Any], labels_pixels: bool) -> list[str]:
    warnings = []
    for part, use in (("val", "no epoch and no setting can be chosen"), ("test", "nothing is reported")):
        if part not in report["splits"]:
            warnings.append(f"there is no {part} split: {use} by it")
    near = report["duplicates"]["nearly_across_splits"]
    if near["count"]:
        others = f", {near['of_another_class']:,} of another class" if near["of_another_class"] else ""
        alike = f"nearly like one of an earlier split (at most {MAX_HASH_DISTANCE} of 64 bits differ{others})"
        warnings.append(f"{_format_image_count(near['count'], 'looks', 'look')} {alike}")
    inside = report["duplicates"]["within_a_split"]
    if inside["count"]:
        warnings.append(f"{_format_image_count(inside['count'], 'is', 'are')} in a split more than once")
    for part, found in report["splits"].items():
        spread = found["images_per_class"]
        if found["empty_classes"]:
            warnings.append(f"{part}: no image of {format_class_names(found['empty_classes'])}")
        elif part == "train" and not labels_pixels and spread["most"] > IMBALANCE_RATIO * spread["least"]:
            warnings.append(
                f"{part}: the largest class has {spread['most']:,} images, the smallest {spread['least']:,}: accuracy "
                "will favour the large ones"
            )
        if found["small"]:
            warnings.append(
                f"{part}: {_format_image_count(found['small'], 'is', 'are')} smaller than {SMALL_SIDE} pixels"
            )
        if found["unlabelled"]:
            warnings.append(f"{part}: {_format_image_count(found['unlabelled'], 'has', 'have')} no pixel with a class")
        if found["of_one_colour"]:
            warnings.append(
                f"{part}: {_format_image_count(found['of_one_colour'], 'is', 'are')} of one colour, or nearly"
            )
        if found["outside"]:
            said = _format_image_count(len(found["outside"]), "has", "have")
            warnings.append(f"{part}: {said} a box or a part that reaches out of it")
        if found["empty_masks"]:
            warnings.append(f"{part}: {_format_image_count(found['empty_masks'], 'has', 'have')} an empty mask")
    return warnings


def _format_image_count(count: int, one: str, several: str) -> str:
    return f"{count:,} image {one}" if count == 1 else f"{count:,} images {several}"
