"""What happens to an image, and with it to its mask, before the backbone sees it. Built from torchvision alone."""

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
    """What of an image is seen: the rectangle's left and upper edge, width and height, in pixels of the image."""

    left: float
    top: float
    width: float
    height: float


class ImageTransform:
    """Steps of torchvision's v2 applied to an image and its mask together, and the pixels then normalised.

    Random steps draw from torch's generator. Normalising is the kernels that `v2.ToDtype` and `v2.Normalize` call,
    without what these do around them for each image.
    """

    def __init__(self, steps: list[v2.Transform], mean: Sequence[float], std: Sequence[float]) -> None:
        self.steps = v2.Compose(steps)
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, image: Image, mask: np.ndarray | Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """An RGB image and perhaps its `[H, W]` mask to a normalised `[3, h, w]` float32 and a `[h, w]` bool tensor."""
        if mask is None:
            return self._normalize(self.steps(image)), None
        whole = tv_tensors.Mask(torch.from_numpy(np.asarray(mask).astype(np.uint8)))
        shown, cut = self.steps(image, whole)
        return self._normalize(shown), cut.as_subclass(Tensor).bool()

    def _normalize(self, image: Image) -> Tensor:
        pixels = v2.functional.pil_to_tensor(image).contiguous()  # Pillow has the channels last, which is slow
        return v2.functional.to_dtype_image(pixels, torch.float32, scale=True).sub_(self.mean).div_(self.std)

    def window(self, image: Image) -> CropWindow:
        """What of an image a transform without random steps keeps; edges outside the image belong to padding.

        Followed by a box of one pixel in the image's middle, which every crop here keeps: what becomes of its place and
        size is what becomes of everything's.
        """
        x, y = image.width / 2, image.height / 2
        box = torch.tensor([[x - 0.5, y - 0.5, x + 0.5, y + 0.5]], dtype=torch.float64)
        boxes = tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=(image.height, image.width))
        seen, moved = self.steps(image, boxes)
        height, width = v2.functional.get_size(seen)
        left, top, right, bottom = moved.as_subclass(Tensor)[0].tolist()
        across, down = right - left, bottom - top  # pixels of what is seen to one of the image
        return CropWindow(x - 0.5 - left / across, y - 0.5 - top / down, width / across, height / down)


def build_transform(images: ImageOptions, preprocessing: Preprocessing, train: bool) -> ImageTransform:
    """The recipe's wishes over the backbone's own preprocessing.

    Evaluation follows timm: the image covers `floor(size / crop_pct)` (or its shorter side becomes `images.resize`),
    then the centre is cut out.

    Raises:
        UsageError: the options contradict each other, or the resized image would not fill the crop.
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
    """Resize, keeping the aspect ratio, until the image just covers (height, width): timm's rule for oblong inputs."""

    def __init__(self, size: tuple[int, int], interpolation: v2.InterpolationMode) -> None:
        super().__init__()
        self.size = size
        self.interpolation = interpolation

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The new size, from the first of the inputs (the image)."""
        height, width = v2.functional.get_size(flat_inputs[0])
        shrink = min(height / self.size[0], width / self.size[1])
        return {"size": [round(height / shrink), round(width / shrink)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one of the inputs."""
        return v2.functional.resize(inpt, params["size"], interpolation=self.interpolation)


def _build_resize(
    images: ImageOptions, preprocessing: Preprocessing, interpolation: v2.InterpolationMode
) -> v2.Transform:
    """The resize before the crop. timm rounds the longer side down for square inputs only, hence the two kinds."""
    if images.resize is not None:
        return v2.Resize(images.resize, interpolation)
    height, width = (math.floor(side / preprocessing.crop_pct) for side in preprocessing.image_size)
    return v2.Resize(height, interpolation) if height == width else ResizeToCover((height, width), interpolation)


def _check_options(images: ImageOptions, preprocessing: Preprocessing) -> None:
    height, width = preprocessing.image_size
    if images.squash and images.resize is not None:
        raise UsageError(
            "images.squash and images.resize exclude each other.",
            f"Squashing resizes straight to the input size, {height}×{width}.",
            "Leave one of them out.",
            code="image.conflicting-options",
        )
    if images.squash and images.augment == "crop-flip":
        raise UsageError(
            "images.squash leaves nothing for images.augment=crop-flip to crop.",
            f"Squashing resizes straight to the input size, {height}×{width}.",
            "Use images.augment=flip, or squash=false.",
            code="image.conflicting-options",
        )
    if images.resize is not None and images.resize < max(height, width):
        raise UsageError(
            f"images.resize={images.resize} is too small.",
            f"The backbone's input is {height}×{width}, so the crop would reach beyond the image.",
            f"Use {max(height, width)} or more, or leave images.resize out.",
            code="image.resize-too-small",
        )
