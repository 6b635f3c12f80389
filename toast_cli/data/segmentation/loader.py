"""Batches of images and class maps. Training transforms both; evaluation keeps labels at their original size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from toast_cli.data.images.augmentation import build_augmentation, require_pixel_augmentation
from toast_cli.data.images.loader import ImageDataset, ImageLoader, build_data_loader, describe_bit_depth
from toast_cli.data.images.resize import Resize
from toast_cli.data.segmentation.dataset import UNLABELLED_PIXEL
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Preprocessing
    from toast_cli.backbones.image_options import ImageOptions, PixelOptions
    from toast_cli.data.base import BatchOptions, ImageSplit, LoaderOptions, Sample


class SegmentationDataset(ImageDataset):
    """A segmentation split with a transform.

    An item has `image` [3, h, w] and `labels` [H, W], the class of every pixel or `IGNORE_INDEX`. If transformed
    `together`, for training, both have the same size. Otherwise labels keep the original size of the image, and the
    item also has `extent`, (h, w), and `size`, (H, W).
    """

    def __init__(self, split: ImageSplit, transform: v2.Transform, seed: int, together: bool) -> None:
        super().__init__(split, transform, seed)
        self.steps = transform
        self.together = together

    def transform_image(self, sample: Sample) -> dict[str, Any]:
        """Return the transformed image and the labels of a sample."""
        classes = torch.from_numpy(sample.classes)
        if self.together:
            image, cropped = self.steps(sample.image, tv_tensors.Mask(classes))
            return {"image": image.as_subclass(Tensor), "labels": _to_labels(cropped.as_subclass(Tensor))}
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
    """Return a loader of images with a label for every pixel, transformed for the backbone.

    Raises:
        UsageError: image sizes do not fit, or an option supports only labelled images.
    """
    if options.images.on_error == "skip":
        raise UsageError(
            "images.on_error=skip does not support segmentation.",
            what_to_do="Replace or remove the pairs that cannot be read.",
            code="image.unsupported-option",
        )
    if options.images.cache:
        raise UsageError(
            "images.cache does not support segmentation.",
            what_to_do="Remove images.cache.",
            code="image.unsupported-option",
        )
    assert options.pixels is not None, "recipes of other tasks are rejected for such data"
    transform = build_segmentation_transform(options.images, options.pixels, preprocessing, train=batches.augment)
    dataset = SegmentationDataset(split, transform, options.seed, together=batches.augment)
    loader = build_data_loader(dataset, batches, options.workers, _pad_batch, options.pin_memory)
    if batches.shuffle:
        loader.notes = describe_bit_depth(split)
    return loader


def build_segmentation_transform(
    images: ImageOptions, pixels: PixelOptions, preprocessing: Preprocessing, train: bool
) -> v2.Transform:
    """Build the transform to the backbone's input, of an image and, in training, its class map as a `Mask`.

    Raises:
        UsageError: image sizes do not fit.
    """
    require_pixel_augmentation(images)
    steps = build_training_steps if train else build_evaluation_steps
    mean, std = images.normalization(preprocessing.mean, preprocessing.std)
    normalize = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    return v2.Compose([*steps(images, pixels, preprocessing), *normalize])


def build_evaluation_steps(
    images: ImageOptions, pixels: PixelOptions, preprocessing: Preprocessing
) -> list[v2.Transform]:
    """Return the geometric steps of evaluation.

    `whole` resizes an image to the input size. `slide` resizes it to cover the input size, keeping its aspect ratio.

    Raises:
        UsageError: resized images would be smaller than the input, or `images.squash` is set.
    """
    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    if images.squash:
        raise UsageError(
            "images.squash does not support segmentation.",
            what_to_do="Use task.evaluation=whole.",
            code="image.unsupported-option",
        )
    if pixels.evaluation == "whole":
        return [Resize(preprocessing.image_size, "squash", interpolation)]
    if images.resize is None:
        return [Resize(preprocessing.image_size, "cover", interpolation)]
    if images.resize < max(preprocessing.image_size):
        raise UsageError(
            f"images.resize={images.resize} is too small.",
            f"It is smaller than the backbone's input, {preprocessing.image_size[0]}×{preprocessing.image_size[1]}.",
            f"Use {max(preprocessing.image_size)} or more, or remove images.resize.",
            code="image.resize-too-small",
        )
    return [Resize((images.resize, images.resize), "shorter-side", interpolation)]


def build_training_steps(
    images: ImageOptions, pixels: PixelOptions, preprocessing: Preprocessing
) -> list[v2.Transform]:
    """Return the steps of training, as in the recipe: random scale, crop and flip to the input size, and changes."""
    mean, _ = images.normalization(preprocessing.mean, preprocessing.std)
    grey = [round(255 * value) for value in mean]  # zero after normalization
    return [
        *build_training_crop(images, pixels, preprocessing, grey),
        *build_augmentation(images, grey, fill_mask=UNLABELLED_PIXEL),
    ]


def build_training_crop(
    images: ImageOptions, pixels: PixelOptions, preprocessing: Preprocessing, grey: list[int]
) -> list[v2.Transform]:
    """Return the random scale, crop and flip to the input size; `grey` is the RGB value of padding."""
    size, interpolation = preprocessing.image_size, v2.InterpolationMode(preprocessing.interpolation)
    if images.augment == "random-resized-crop":
        return [v2.RandomResizedCrop(size, interpolation=interpolation), v2.RandomHorizontalFlip()]
    plain = build_evaluation_steps(images, pixels, preprocessing)
    if images.augment != "crop-flip":
        return [*plain, v2.CenterCrop(size), *([v2.RandomHorizontalFlip()] if images.augment == "flip" else [])]
    if pixels.scale is not None:
        side = images.resize or max(size)
        least, most = (round(side * factor) for factor in pixels.scale)
        plain = [v2.RandomResize(least, most + 1, interpolation)]
    fill: dict[Any, Any] = {tv_tensors.Image: grey, tv_tensors.Mask: UNLABELLED_PIXEL}
    return [*plain, v2.ToImage(), v2.RandomCrop(size, pad_if_needed=True, fill=fill), v2.RandomHorizontalFlip()]


def _to_labels(classes: Tensor) -> Tensor:
    return classes.long().masked_fill(classes == UNLABELLED_PIXEL, IGNORE_INDEX)


def _pad_batch(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate a batch, with images and labels padded at the bottom and right to the largest size."""
    batch: dict[str, Any] = {name: torch.tensor([item[name] for item in items]) for name in ("index", "view")}
    for name, filler in (("image", 0.0), ("labels", IGNORE_INDEX)):
        tensors = [item[name] for item in items]
        height, width = (max(tensor.shape[side] for tensor in tensors) for side in (-2, -1))
        batch[name] = torch.stack(
            [F.pad(t, (0, width - t.shape[-1], 0, height - t.shape[-2]), value=filler) for t in tensors]
        )
    for name in ("extent", "size"):
        if name in items[0]:
            batch[name] = torch.stack([item[name] for item in items])
    return {name: batch[name] for name in items[0]}
