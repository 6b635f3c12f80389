"""Whether two runs are shown the same images with the same object marked: names do not tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toast_cli.data.base import ImageSplit, Sample, describe_masks
from toast_cli.recipe.schema import Recipe
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import ToastError


@dataclass(frozen=True)
class EvaluationImages:
    """The images of a run, the classes of their labels, and the recipe that says how the data is opened.

    `path` is what an error calls the run.
    """

    path: Path
    split: ImageSplit
    classes: tuple[str, ...]
    recipe: Recipe


def check_same_images(first: EvaluationImages, other: EvaluationImages, reporter: Reporter) -> None:
    """Refuse a run that is not shown the same images as the first one.

    The demo calls its images alike in every world, a grid in every layout, and so may two folders: where two recipes
    open data in different ways, every image is read and its pixels are held against the other's. Where they open it in
    one way, it is the same.

    Raises:
        ToastError: images, their labels or what marks the object in them differ, or an image cannot be read.
    """
    apart = _describe_first_difference(first, other)
    if apart is not None:
        raise _make_image_mismatch_error(first, other, apart)
    one_marks, other_marks = describe_masks(first.split), describe_masks(other.split)
    if one_marks != other_marks:
        found = f"{one_marks or 'nothing'} in {first.path}, {other_marks or 'nothing'} in {other.path}"
        raise _make_mask_mismatch_error(first, other, f"It is {found}.")
    if _get_data_settings(first) == _get_data_settings(other):
        return
    count = len(first.split)
    for index in reporter.track(range(count), count, "are the images the same"):
        one, another = first.split.load(index), other.split.load(index)
        if _get_pixels(one) != _get_pixels(another):
            raise _make_image_mismatch_error(
                first, other, f"The first that differs is {one.name}: one name, two pictures."
            )
        if one.mask is not None and not np.array_equal(one.mask, another.mask):  # type: ignore[arg-type]
            raise _make_mask_mismatch_error(first, other, f"The first in which it differs is {one.name}.")


def _describe_first_difference(first: EvaluationImages, other: EvaluationImages) -> str | None:
    """Return the first difference in names and labels, in words; None if there is none."""
    if first.classes != other.classes:
        return "Their classes differ."
    if len(first.split) != len(other.split):
        return f"It has {len(other.split):,}, and {first.path} has {len(first.split):,}."
    names = zip(first.split.names, other.split.names, strict=True)
    labels = zip(first.split.labels, other.split.labels, strict=True)
    for (name, other_name), (label, other_label) in zip(names, labels, strict=True):
        if name != other_name:
            return f"The first that differs is {other_name}, where {first.path} has {name}."
        if label != other_label:
            classes = first.classes
            return f"The first that differs is {name}, labelled {classes[other_label]}, there {classes[label]}."
    return None


def _get_data_settings(images: EvaluationImages) -> tuple[object, str | None]:
    return images.recipe.dataset, images.recipe.data_dir


def _get_pixels(sample: Sample) -> tuple[str, tuple[int, int], bytes]:
    return sample.image.mode, sample.image.size, sample.image.tobytes()


def _make_image_mismatch_error(first: EvaluationImages, other: EvaluationImages, why: str) -> ToastError:
    return ToastError(
        f"{other.path} is not measured on the same images as {first.path}.",
        why,
        "Name one data set for all with --dataset.",
        code="data.different-images",
    )


def _make_mask_mismatch_error(first: EvaluationImages, other: EvaluationImages, why: str) -> ToastError:
    return ToastError(
        f"What marks the object is not the same for {other.path} as for {first.path}.",
        (why, "Shares inside the one and inside the other are different numbers."),
        "Name one data set for all with --dataset.",
        code="data.different-masks",
    )
