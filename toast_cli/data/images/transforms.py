"""Transforms of an image and its mask to the backbone's input, built from torchvision's v2 transforms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from toast_cli.data.images.augmentation import build_augmentation
from toast_cli.data.images.resize import Resize, ResizeAndCrop, ResizeRule
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from toast_cli.backbones.base import Preprocessing
    from toast_cli.backbones.image_options import ImageOptions


@dataclass(frozen=True)
class CropWindow:
    """The visible rectangle of an image: left and upper edge, width and height, in pixels of the image."""

    left: float
    top: float
    width: float
    height: float


class ImageTransform:
    """torchvision's v2 transforms, applied to an image and its mask together, followed by normalization of the image.

    Random steps draw from torch's default generator. Normalization calls the kernels of `v2.ToDtype` and
    `v2.Normalize` directly, to avoid their overhead for every image.
    """

    def __init__(self, steps: list[v2.Transform], mean: Sequence[float], std: Sequence[float]) -> None:
        self.steps = v2.Compose(steps)
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, image: Image, mask: np.ndarray | Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the normalized image `[3, h, w]` float32, and the mask `[h, w]` bool if a `[H, W]` mask is given."""
        if mask is None:
            return self._normalize(self.steps(image)), None
        full_mask = tv_tensors.Mask(torch.from_numpy(np.asarray(mask).astype(np.uint8)))
        cropped, cropped_mask = self.steps(image, full_mask)
        return self._normalize(cropped), cropped_mask.as_subclass(Tensor).bool()

    def _normalize(self, image: Image) -> Tensor:
        pixels = v2.functional.pil_to_tensor(image).contiguous()  # Pillow stores channels last, which is slow
        return v2.functional.to_dtype_image(pixels, torch.float32, scale=True).sub_(self.mean).div_(self.std)

    def compute_window(self, image: Image) -> CropWindow:
        """Return the window of an image that a transform without random steps keeps. It includes padding, if any."""
        step = self.steps.transforms[0]
        assert isinstance(step, ResizeAndCrop)
        place = step.locate(image.height, image.width)
        down, across = image.height / place.height, image.width / place.width
        return CropWindow(place.left * across, place.top * down, step.size[1] * across, step.size[0] * down)


def build_transform(images: ImageOptions, preprocessing: Preprocessing, train: bool) -> ImageTransform:
    """Build the transform of a recipe's image options on top of the backbone's preprocessing.

    Evaluation follows timm's transform of the backbone, `crop_mode` and all: resize the image to cover
    `floor(size / crop_pct)`, to fit into it or to exactly it, then crop the centre. `images.resize` resizes the shorter
    side to its value and crops the centre; `images.squash` resizes to the input size.

    Raises:
        UsageError: options conflict, or the resized image is smaller than the crop.
    """
    _check_options(images, preprocessing)
    augment = images.augment if train else "none"
    size = preprocessing.image_size
    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    mean, std = images.normalization(preprocessing.mean, preprocessing.std)

    fill = [round(255 * value) for value in mean]  # zero after normalization
    geometry: list[v2.Transform]
    if augment == "random-resized-crop":
        geometry = [v2.RandomResizedCrop(size, interpolation=interpolation)]
    else:
        random = augment == "crop-flip"
        resize = build_resize(images, preprocessing, keep_aspect_ratio=random)
        geometry = [ResizeAndCrop(resize, size, random, fill)]
    if augment != "none":
        geometry.append(v2.RandomHorizontalFlip())
    return ImageTransform([*geometry, *(build_augmentation(images, fill) if train else ())], mean, std)


def build_resize(images: ImageOptions, preprocessing: Preprocessing, keep_aspect_ratio: bool = False) -> Resize:
    """Return the resize before the crop: that of the recipe, or the backbone's own.

    With `keep_aspect_ratio`, for random crops, the backbone's crop mode does not apply: an image that is squashed or
    fitted into the input leaves nothing to crop. As in timm, the longer side is rounded down only for square inputs.
    """
    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    if images.squash:
        return Resize(preprocessing.image_size, "squash", interpolation)
    if images.resize is not None:
        return Resize((images.resize, images.resize), "shorter-side", interpolation)
    height, width = (math.floor(side / preprocessing.crop_pct) for side in preprocessing.image_size)
    rule: ResizeRule = "shorter-side" if height == width else "cover"
    if not keep_aspect_ratio and preprocessing.crop_mode != "center":
        rule = "squash" if preprocessing.crop_mode == "squash" else "fit"
    return Resize((height, width), rule, interpolation)


def _check_options(images: ImageOptions, preprocessing: Preprocessing) -> None:
    height, width = preprocessing.image_size
    if images.squash and images.resize is not None:
        raise UsageError(
            "images.squash and images.resize are mutually exclusive.",
            f"images.squash resizes directly to the input size, {height}×{width}.",
            "Remove one of them.",
            code="image.conflicting-options",
        )
    if images.squash and images.augment == "crop-flip":
        raise UsageError(
            "images.squash and images.augment=crop-flip are mutually exclusive.",
            f"images.squash resizes directly to the input size, {height}×{width}, so there is nothing to crop.",
            "Use images.augment=flip, or images.squash=false.",
            code="image.conflicting-options",
        )
    if images.resize is not None and images.resize < max(height, width):
        raise UsageError(
            f"images.resize={images.resize} is too small.",
            f"The backbone's input is {height}×{width}, so the crop would exceed the image.",
            f"Use {max(height, width)} or more, or remove images.resize.",
            code="image.resize-too-small",
        )
