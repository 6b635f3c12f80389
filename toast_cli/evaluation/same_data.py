"""A check that two runs are evaluated on the same images with the same object masks, beyond their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toast_cli.data.base import ImageSplit, Sample, describe_masks
from toast_cli.data.identity import format_label_names
from toast_cli.recipe.schema import Recipe
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import ToastError


@dataclass(frozen=True)
class EvaluationImages:
    """The evaluation images of a run, their classes, and the recipe that opens them.

    `path` names the run in errors.
    """

    path: Path
    split: ImageSplit
    classes: tuple[str, ...]
    recipe: Recipe


def check_same_images(first: EvaluationImages, other: EvaluationImages, reporter: Reporter) -> None:
    """Check that a run has the same evaluation images as the first one.

    Different data can have the same image names: the demo in every world, grids in every layout, or two folders. If the
    data options of two recipes differ, the pixels of every image are compared. Otherwise, the data is the same.

    Raises:
        ToastError: the images, labels or object masks differ, or an image cannot be read.
    """
    difference = _describe_first_difference(first, other)
    if difference is not None:
        raise _make_image_mismatch_error(first, other, difference)
    one_marks, other_marks = describe_masks(first.split), describe_masks(other.split)
    if one_marks != other_marks:
        marks = f"{one_marks or 'nothing'} in {first.path}, {other_marks or 'nothing'} in {other.path}"
        raise _make_mask_mismatch_error(first, other, f"The object is marked by {marks}.")
    if _get_data_settings(first) == _get_data_settings(other):
        return
    count = len(first.split)
    for index in reporter.track_progress(range(count), count, "comparing images"):
        one, another = first.split.load(index), other.split.load(index)
        if _get_pixels(one) != _get_pixels(another):
            raise _make_image_mismatch_error(first, other, f"The first difference: {one.name} has other pixels.")
        if one.mask is not None and not np.array_equal(one.mask, another.mask):  # type: ignore[arg-type]
            raise _make_mask_mismatch_error(first, other, f"The first difference is in {one.name}.")


def _describe_first_difference(first: EvaluationImages, other: EvaluationImages) -> str | None:
    """Return a sentence on the first difference in names and labels; None if there is none.

    Runs may know other classes, as long as every image has the same one.
    """
    if len(first.split) != len(other.split):
        return f"It has {len(other.split):,} images, and {first.path} has {len(first.split):,}."
    names = zip(first.split.names, other.split.names, strict=True)
    labels = zip(first.split.labels, other.split.labels, strict=True)
    for (name, other_name), (label, other_label) in zip(names, labels, strict=True):
        if name != other_name:
            return f"The first difference: it has {other_name} where {first.path} has {name}."
        theirs, own = format_label_names(other_label, other.classes), format_label_names(label, first.classes)
        if theirs != own:
            return f"The first difference: {name} is labelled {theirs}, in {first.path} {own}."
    return None


def _get_data_settings(images: EvaluationImages) -> tuple[object, str | None]:
    return images.recipe.dataset, images.recipe.data_dir


def _get_pixels(sample: Sample) -> tuple[str, tuple[int, int], bytes]:
    return sample.image.mode, sample.image.size, sample.image.tobytes()


def _make_image_mismatch_error(first: EvaluationImages, other: EvaluationImages, why: str) -> ToastError:
    return ToastError(
        f"{other.path} and {first.path} are not evaluated on the same images.",
        why,
        "Select one data set for all runs with --dataset.",
        code="data.different-images",
    )


def _make_mask_mismatch_error(first: EvaluationImages, other: EvaluationImages, why: str) -> ToastError:
    return ToastError(
        f"{other.path} and {first.path} have different object masks.",
        (why, "Shares of attention inside different masks cannot be compared."),
        "Select one data set for all runs with --dataset.",
        code="data.different-masks",
    )
