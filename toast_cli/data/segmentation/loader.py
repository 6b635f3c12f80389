"""Batches of images and class maps: changed together for training; for evaluation, labels stay at their own size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from toast_cli.data.images.loader import ImageDataset, ImageLoader, build_data_loader
from toast_cli.data.images.transforms import ResizeToCover
from toast_cli.data.segmentation.dataset import UNLABELLED_PIXEL
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Preprocessing
    from toast_cli.backbones.image_options import ImageOptions, PixelOptions
    from toast_cli.data.base import BatchOptions, ImageSplit, LoaderOptions, Sample


class SegmentationDataset(ImageDataset):
    """A split through a transform.

    `image` is [3, h, w] and `labels` [H, W], the class of every pixel or `IGNORED`. Both have one size in training; in
    evaluation labels keep the image's own, and `extent` is (h, w), `size` (H, W).
    """

    def __init__(self, split: ImageSplit, transform: v2.Transform, seed: int, together: bool) -> None:
        super().__init__(split, transform, seed)
        self.steps = transform
        self.together = together

    def shown(self, sample: Sample) -> dict[str, Any]:
        """Image and labels."""
        classes = torch.from_numpy(sample.classes)
        if self.together:
            image, cut = self.steps(sample.image, tv_tensors.Mask(classes))
            return {"image": image.as_subclass(Tensor), "labels": _to_labels(cut.as_subclass(Tensor))}
        image = self.steps(sample.image).as_subclass(Tensor)
        return {
            "image": image,
            "labels": _to_labels(classes),
            "extent": torch.tensor(image.shape[-2:]),
            "size": torch.tensor(classes.shape),
        }


def build_pixel_loader(
    split: ImageSplit, preprocessing: Preprocessing, batches: BatchOptions, options: LoaderOptions
) -> ImageLoader:
    """Return batches of images with a label for every pixel, transformed for the backbone.

    Raises:
        UsageError: sizes do not fit, or an option is for labelled images alone.
    """
    if options.images.on_error == "skip":
        raise UsageError(
            "images.on_error=skip is for labelled images.",
            what_to_do="Mend the pairs that cannot be read, or remove them.",
            code="image.unsupported-option",
        )
    if options.images.cache:
        raise UsageError(
            "images.cache is for labelled images.", what_to_do="Leave it out.", code="image.unsupported-option"
        )
    assert options.pixels is not None, "recipes whose task labels no pixels are refused for such data"
    transform = build_segmentation_transform(options.images, options.pixels, preprocessing, train=batches.augment)
    dataset = SegmentationDataset(split, transform, options.seed, together=batches.augment)
    return build_data_loader(dataset, batches, options.workers, _pad_batch, options.pin_memory)


def build_segmentation_transform(
    images: ImageOptions, wishes: PixelOptions, seen: Preprocessing, train: bool
) -> v2.Transform:
    """From an image, and in training its class map as a `Mask`, to what the backbone sees.

    Raises:
        UsageError: sizes do not fit.
    """
    steps = build_training_steps if train else build_evaluation_steps
    mean, std = images.normalization(seen.mean, seen.std)
    numbers = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    return v2.Compose([*steps(images, wishes, seen), *numbers])


def build_evaluation_steps(images: ImageOptions, wishes: PixelOptions, seen: Preprocessing) -> list[v2.Transform]:
    """`whole`: straight to the input size; `slide`: in its own shape, so that it covers the input size.

    Raises:
        UsageError: the images asked for would be smaller than the input.
    """
    interpolation = v2.InterpolationMode(seen.interpolation)
    if images.squash:
        raise UsageError(
            "images.squash is for labelled images.",
            what_to_do="Use task.evaluation=whole.",
            code="image.unsupported-option",
        )
    if wishes.evaluation == "whole":
        return [v2.Resize(seen.image_size, interpolation)]
    if images.resize is None:
        return [ResizeToCover(seen.image_size, interpolation)]
    if images.resize < max(seen.image_size):
        raise UsageError(
            f"images.resize={images.resize} is too small.",
            f"The backbone's input is {seen.image_size[0]}×{seen.image_size[1]}, and no window would fit.",
            f"Use {max(seen.image_size)} or more, or leave images.resize out.",
            code="image.resize-too-small",
        )
    return [v2.Resize(images.resize, interpolation)]


def build_training_steps(images: ImageOptions, wishes: PixelOptions, seen: Preprocessing) -> list[v2.Transform]:
    """Random scale, crop and mirror, as far as the recipe wants them; what comes out has the input size."""
    size, interpolation = seen.image_size, v2.InterpolationMode(seen.interpolation)
    if images.augment == "random-resized-crop":
        return [v2.RandomResizedCrop(size, interpolation=interpolation), v2.RandomHorizontalFlip()]
    plain = build_evaluation_steps(images, wishes, seen)
    if images.augment != "crop-flip":
        return [*plain, v2.CenterCrop(size), *([v2.RandomHorizontalFlip()] if images.augment == "flip" else [])]
    if wishes.scale is not None:
        side = images.resize or max(size)
        least, most = (round(side * factor) for factor in wishes.scale)
        plain = [v2.RandomResize(least, most + 1, interpolation)]
    mean, _ = images.normalization(seen.mean, seen.std)
    grey = [round(255 * value) for value in mean]  # nothing, once normalised
    fill: dict[Any, Any] = {tv_tensors.Image: grey, tv_tensors.Mask: UNLABELLED_PIXEL}
    return [*plain, v2.ToImage(), v2.RandomCrop(size, pad_if_needed=True, fill=fill), v2.RandomHorizontalFlip()]


def _to_labels(classes: Tensor) -> Tensor:
    return classes.long().masked_fill(classes == UNLABELLED_PIXEL, IGNORE_INDEX)


def _pad_batch(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch, images and labels filled up to the largest of it at the bottom and the right."""
    batch: dict[str, Any] = {name: torch.tensor([item[name] for item in items]) for name in ("index", "view")}
    for name, filler in (("image", 0.0), ("labels", IGNORE_INDEX)):
        tensors = [item[name] for item in items]
        height, width = (max(tensor.shape[side] for tensor in tensors) for side in (-2, -1))
        batch[name] = torch.stack(
            [F.pad(one, (0, width - one.shape[-1], 0, height - one.shape[-2]), value=filler) for one in tensors]
        )
    for name in ("extent", "size"):
        if name in items[0]:
            batch[name] = torch.stack([item[name] for item in items])
    return {name: batch[name] for name in items[0]}
