"""The audit of a data set: read every image once, find unreadable files and duplicates, and summarize the splits."""

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
from toast_cli.data.base import DataSet, list_label_indices
from toast_cli.data.images.decode import guess_white
from toast_cli.data.images.folder_scan import to_printable_name
from toast_cli.data.images.upright import WHITE_16_BIT
from toast_cli.data.splits import CLASS_NOUNS, format_class_names

THIN_RATIO = 10
"""Ratio of the sides of an image above which the report has a warning: a centre crop shows less than a tenth of it."""

SMALL_SIDE = 32
"""Shorter side, in pixels, below which an image counts as small."""

IMBALANCE_RATIO = 10
"""Ratio of the largest to the smallest class above which the report has a warning."""

MAX_LISTED = 100
"""Maximum number of pairs of a kind that a report lists; all are counted."""

REPORTED_SPLITS = ("train", "val", "test")


ProgressTracker = Callable[[Iterable[Any], int, str], Iterable[Any]]


def check_dataset(data: DataSet, track: ProgressTracker) -> dict[str, Any]:
    """Return a report on a data set of images as a JSON object: splits, duplicates, `problems` and `warnings`.

    A problem makes the results of a run invalid: an image that cannot be read, an image in two splits (possibly scaled,
    compressed or mirrored), an image under two classes, or a stream of unexpected length. A warning is for the user to
    judge. If labels belong to pixels, an image belongs to every class that occurs in it.

    `track(items, total, description)` yields the items and shows progress.

    Raises:
        ToastError: a stream ends with an error.
    """
    splits = {part: data.splits[part] for part in REPORTED_SPLITS if part in data.splits}
    scans = {part: list(track(scan_images(split), len(split), f"reading {part}")) for part, split in splits.items()}
    exact = find_exact_duplicates(scans)
    across = [pair for pair in exact if pair.first[0] != pair.second[0]]
    inside = [pair for pair in exact if pair.first[0] == pair.second[0]]
    near = find_near_duplicates(scans, {pair.second for pair in across})
    changed = [pair for pair in near if pair.copies]
    similar = [pair for pair in near if not pair.copies]

    def describe(pair: DuplicatePair) -> dict[str, Any]:
        first, second = (scans[part][index] for part, index in (pair.first, pair.second))
        return {
            "first": f"{pair.first[0]}: {to_printable_name(first.name)}",
            "second": f"{pair.second[0]}: {to_printable_name(second.name)}",
            "same_class": (first.label, first.classes) == (second.label, second.classes),
            "distance": pair.distance,
            "mirrored": pair.mirrored,
        }

    def summarize(pairs: Sequence[DuplicatePair]) -> dict[str, Any]:
        # Pairs of different classes come first, because the list may be cut.
        entries = sorted(map(describe, pairs), key=lambda entry: entry["same_class"])
        others = sum(not entry["same_class"] for entry in entries)
        return {"count": len(entries), "of_another_class": others, "pairs": entries[:MAX_LISTED]}

    by_class = data.target != "number" and not any(image.classes is not None for image in chain(*scans.values()))
    report: dict[str, Any] = {
        "classes": len(data.classes),
        "target": data.target,
        "splits": {part: _summarize_split(len(split), scans[part], data) for part, split in splits.items()},
        "duplicates": {
            "across_splits": summarize(across),
            "changed_across_splits": summarize(changed),
            "within_a_split": summarize(inside),
            "nearly_across_splits": summarize(similar),
        },
        "notes": list(data.notes),
    }
    warnings = [*data.warnings, *_list_warnings(report, by_class)]
    return {**report, "problems": _list_problems(report), "warnings": warnings}


def _summarize_split(expected: int, images: Sequence[ScannedImage], data: DataSet) -> dict[str, Any]:
    """Return the summary of a split; `expected` is the number of images that it should have."""
    classes = () if data.target == "number" else data.classes
    sizes = Counter(chain.from_iterable(map(_list_classes, images)))
    counts = [sizes.get(label, 0) for label in range(len(classes))]
    good = [image for image in images if not image.error]
    readable = set(chain.from_iterable(map(_list_classes, good)))
    numbers: Iterable[Any] = zip(*(image.label for image in images), strict=True) if data.target == "number" else ()
    unreadable = [{"name": to_printable_name(image.name), "why": image.error} for image in images if image.error]

    def spread(values: Sequence[int]) -> dict[str, float] | None:
        return {"least": min(values), "median": median(values), "most": max(values)} if values else None

    return {
        "images": len(images),
        "said": expected,
        "unreadable": unreadable,
        "images_per_class": spread(counts),
        "images_of_class": dict(zip(classes, counts, strict=True)),
        "unreadable_classes": [name for label, name in enumerate(classes) if counts[label] and label not in readable],
        "numbers": dict(zip(data.classes, map(spread, numbers), strict=False)),
        "empty_classes": [name for name, count in zip(classes, counts, strict=True) if not count],
        "width": spread([image.width for image in good]),
        "height": spread([image.height for image in good]),
        "small": sum(min(image.width, image.height) < SMALL_SIDE for image in good),
        "thin": [to_printable_name(image.name) for image in good if _is_thin(image)],
        "remarks": dict(Counter(chain.from_iterable(image.remarks for image in good))),
        "deep": sum(image.brightest is not None for image in good),
        "brightest": max((image.brightest for image in good if image.brightest is not None), default=None),
        "of_one_colour": sum(image.look is None for image in good),
        "empty_masks": sum(image.empty_mask for image in good),
        "outside": [to_printable_name(image.name) for image in good if image.outside],
        "unlabelled": sum(image.classes is not None and min(image.classes) >= len(classes) for image in good),
    }


def _list_classes(image: ScannedImage) -> Sequence[int]:
    """Return the classes of an image: those of its pixels, or of its label."""
    return list_label_indices(image.label) if image.classes is None else image.classes


def _is_thin(image: ScannedImage) -> bool:
    return max(image.width, image.height) > THIN_RATIO * min(image.width, image.height)


def _list_problems(report: Mapping[str, Any]) -> list[str]:
    problems = []
    for part, found in report["splits"].items():
        if found["unreadable"]:
            problems.append(f"{part}: {len(found['unreadable']):,} of {found['images']:,} images cannot be read")
        if lost := found["unreadable_classes"]:
            problems.append(f"{format_class_names(lost, target=report['target'])}: no readable image in {part}")
        if found["images"] != found["said"]:
            problems.append(f"{part}: {found['images']:,} images found, {found['said']:,} expected")
    found = report["duplicates"]
    across, changed, inside = found["across_splits"], found["changed_across_splits"], found["within_a_split"]
    if across["count"]:
        shared = _format_image_count(across["count"], "is", "are")
        problems.append(f"{shared} in two splits, so evaluation uses images seen in training or selection")
    if changed["count"]:
        shown = _format_image_count(changed["count"], "shows", "show")
        problems.append(f"{shown} the same as one of an earlier split, only scaled, compressed, brightened or mirrored")
    another = {"class": "another class", "labels": "other labels", "number": "another number"}[report["target"]]
    if others := across["of_another_class"] + changed["of_another_class"]:
        conflicting = _format_image_count(others, "has", "have")
        problems.append(f"{conflicting} {another} than the same image in another split: one of the two is wrong")
    if inside["of_another_class"]:
        conflicting = _format_image_count(inside["of_another_class"], "has", "have")
        problems.append(f"{conflicting} {another} than an earlier copy in the same split: one of the two is wrong")
    return problems


def _list_warnings(report: Mapping[str, Any], by_class: bool) -> list[str]:
    warnings = []
    one, several = CLASS_NOUNS[report["target"]]
    for part, effect in (("val", "epochs and settings cannot be selected"), ("test", "no test result is reported")):
        if part not in report["splits"]:
            warnings.append(f"there is no {part} split: {effect}")
    near = report["duplicates"]["nearly_across_splits"]
    if near["count"]:
        others = f", {near['of_another_class']:,} of another class" if near["of_another_class"] else ""
        similar = f"nearly like one of an earlier split (at most {MAX_HASH_DISTANCE} of 64 bits differ{others})"
        warnings.append(f"{_format_image_count(near['count'], 'looks', 'look')} {similar}")
    inside = report["duplicates"]["within_a_split"]
    if inside["count"]:
        warnings.append(f"{_format_image_count(inside['count'], 'is', 'are')} in a split more than once")
    splits = report["splits"].values()
    brightest = max((found["brightest"] for found in splits if found["brightest"] is not None), default=None)
    if (white := guess_white(brightest)) is not None:
        deep = _format_image_count(sum(found["deep"] for found in splits), "has", "have")
        warnings.append(
            f"{deep} more than 8 bits, but no value above {brightest:,.0f} of {WHITE_16_BIT:,}, and so nearly black: "
            f"if they hold {white.bit_length()} bits, set images.white={white} in every run"
        )
    for part, found in report["splits"].items():
        if found["thin"]:
            thin = _format_image_count(len(found["thin"]), "is", "are")
            warnings.append(
                f"{part}: {thin} more than {THIN_RATIO} times as long as wide, so a crop shows little of it: "
                f"{', '.join(found['thin'][:3])}{' and more' * (len(found['thin']) > 3)}"
            )
        for remark, count in found["remarks"].items():
            warnings.append(f"{part}: {count:,} {'image' if count == 1 else 'images'}: {remark}")
        spread = found["images_per_class"]
        if found["empty_classes"]:
            warnings.append(
                f"{part}: no image of {format_class_names(found['empty_classes'], target=report['target'])}"
            )
        elif part == "train" and by_class and spread["most"] > IMBALANCE_RATIO * spread["least"]:
            warnings.append(
                f"{part}: the largest {one} has {spread['most']:,} images, the smallest {spread['least']:,}: accuracy "
                f"will favour large {several}"
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
            outside = _format_image_count(len(found["outside"]), "has", "have")
            warnings.append(f"{part}: {outside} a box or a part outside of the image")
        if found["empty_masks"]:
            warnings.append(f"{part}: {_format_image_count(found['empty_masks'], 'has', 'have')} an empty mask")
    return warnings


def _format_image_count(count: int, one: str, several: str) -> str:
    return f"{count:,} image {one}" if count == 1 else f"{count:,} images {several}"
