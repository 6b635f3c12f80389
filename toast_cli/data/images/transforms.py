"""Transforms of an image and its mask to the backbone's input, built from torchvision's v2 transforms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

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

    def window(self, image: Image) -> CropWindow:
        """Return the window of an image that a transform without random steps keeps. It includes padding, if any.

        The window follows from the position and size of a one-pixel box at the image's centre after the transform;
        every crop here keeps the centre.
        """
        x, y = image.width / 2, image.height / 2
        box = torch.tensor([[x - 0.5, y - 0.5, x + 0.5, y + 0.5]], dtype=torch.float64)
        boxes = tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=(image.height, image.width))
        output, output_box = self.steps(image, boxes)
        height, width = v2.functional.get_size(output)
        left, top, right, bottom = output_box.as_subclass(Tensor)[0].tolist()
        across, down = right - left, bottom - top  # output pixels per pixel of the image
        return CropWindow(x - 0.5 - left / across, y - 0.5 - top / down, width / across, height / down)


def build_transform(images: ImageOptions, preprocessing: Preprocessing, train: bool) -> ImageTransform:
    """Build the transform of a recipe's image options on top of the backbone's preprocessing.

    Evaluation follows timm: resize the image to cover `floor(size / crop_pct)` (or its shorter side to
    `images.resize`), then crop the centre.

    Raises:
        UsageError: options conflict, or the resized image is smaller than the crop.
    """
    _check_options(images, preprocessing)
    augment = images.augment if train else "none"
    size = preprocessing.image_size
    interpolation = v2.InterpolationMode(preprocessing.interpolation)

    geometry: list[v2.Transform]
    if augment == "random-resized-crop":
        geometry = [v2.RandomResizedCrop(size, interpolation=interpolation)]
    elif images.squash:
        geometry = [v2.Resize(size, interpolation)]
    else:
        crop = v2.RandomCrop(size) if augment == "crop-flip" else v2.CenterCrop(size)
        geometry = [_build_resize(images, preprocessing, interpolation), crop]
    if augment != "none":
        geometry.append(v2.RandomHorizontalFlip())
    return ImageTransform(geometry, *images.normalization(preprocessing.mean, preprocessing.std))


class ResizeToCover(v2.Transform):
    """Resize to the smallest size that covers (height, width) and keeps the aspect ratio, as timm does."""

    def __init__(self, size: tuple[int, int], interpolation: v2.InterpolationMode) -> None:
        super().__init__()
        self.size = size
        self.interpolation = interpolation

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Return the new size, from that of the first input (the image)."""
        height, width = v2.functional.get_size(flat_inputs[0])
        shrink = min(height / self.size[0], width / self.size[1])
        return {"size": [round(height / shrink), round(width / shrink)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one input."""
        return v2.functional.resize(inpt, params["size"], interpolation=self.interpolation)


def _build_resize(
    images: ImageOptions, preprocessing: Preprocessing, interpolation: v2.InterpolationMode
) -> v2.Transform:
    """Return the resize before the crop. As in timm, the longer side is rounded down only for square inputs."""
    if images.resize is not None:
        return v2.Resize(images.resize, interpolation)
    height, width = (math.floor(side / preprocessing.crop_pct) for side in preprocessing.image_size)
    return v2.Resize(height, interpolation) if height == width else ResizeToCover((height, width), interpolation)


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
