"""Resizing and cropping of an image and its mask. Of a long and thin image, only what the crop keeps is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

if TYPE_CHECKING:
    from collections.abc import Sequence

ResizeRule = Literal["shorter-side", "cover", "fit", "squash"]
"""How the new size follows from `size`: the shorter side gets it (the height is given); the smallest size that covers
it, or the largest that fits into it, with the aspect ratio kept; or exactly it."""

MAX_EXCESS = 16
"""Ratio of a computed image to what is kept of it above which only the part that is needed is computed.

Ordinary images are below it and get the very pixels of torchvision and timm. Above it, pixels agree up to rounding.
"""

MAX_REDUCTION = 4096
"""Reduction of a side above which pixels are averaged first: Pillow's table of filter weights would grow with it."""

FILTER_SUPPORT = 3
"""Reach of the widest filter (Lanczos), in pixels of the smaller of the two images."""


def compute_new_size(rule: ResizeRule, size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Return the height and width of a resized image."""
    if rule == "squash":
        return size
    if rule == "shorter-side":
        longer = int(size[0] * max(height, width) / min(height, width))
        return (longer, size[0]) if height > width else (size[0], longer)
    ratios = height / size[0], width / size[1]
    shrink = min(ratios) if rule == "cover" else max(ratios)
    return max(round(height / shrink), 1), max(round(width / shrink), 1)


def resize_image(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Return the image at `size` (height, width), as `Image.resize` does, within memory in proportion to the two.

    Pillow resizes the width first. A tall and narrow image that becomes wide would be as wide at its old height, so
    its height is resized first.
    """
    height, width = size
    if (height, width) == (image.height, image.width):
        return image
    if image.height * width > MAX_EXCESS * max(image.height * image.width, height * width):
        image = image.resize((image.width, height), resample, reducing_gap=_choose_gap(image, image.width, height))
    return image.resize((width, height), resample, reducing_gap=_choose_gap(image, width, height))


def _choose_gap(image: Image.Image, width: int, height: int) -> float | None:
    """Return the factor that `Image.resize` may leave to its filter, or None to leave it all."""
    return MAX_REDUCTION / 16 if max(image.width / width, image.height / height) > MAX_REDUCTION else None


class Resize(v2.Transform):
    """Resize an image and its mask by one of the rules, as torchvision and timm do.

    Args:
        size: (height, width) that the rule refers to.
        rule: The rule.
        interpolation: Interpolation of the image; that of the mask is the nearest pixel.
    """

    def __init__(self, size: tuple[int, int], rule: ResizeRule, interpolation: v2.InterpolationMode) -> None:
        super().__init__()
        self.size = size
        self.rule = rule
        self.interpolation = interpolation

    def compute_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the new height and width of an image."""
        return compute_new_size(self.rule, self.size, height, width)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Return the new size, from that of the first input (the image)."""
        height, width = v2.functional.get_size(flat_inputs[0])
        return {"size": self.compute_size(height, width)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one input."""
        if isinstance(inpt, Image.Image):
            return resize_image(inpt, params["size"], self.resample)
        return v2.functional.resize(inpt, list(params["size"]), interpolation=self.interpolation)

    @property
    def resample(self) -> Image.Resampling:
        """Pillow's name of the interpolation."""
        return Image.Resampling[self.interpolation.name]


@dataclass(frozen=True)
class CropPlace:
    """A crop: its upper left corner in the resized image (negative: padding), and the size of the resized image."""

    top: int
    left: int
    height: int
    width: int


def locate_center(resized: tuple[int, int], size: tuple[int, int]) -> CropPlace:
    """Return the place of a crop of `size` at the centre of a resized image."""
    top, left = map(_center_start, resized, size)
    return CropPlace(top, left, *resized)


def is_excessive(place: CropPlace, size: tuple[int, int]) -> bool:
    """Return whether the resized image would be much larger than the crop."""
    return place.height * place.width > MAX_EXCESS * size[0] * size[1]


def resize_and_crop_image(
    image: Image.Image,
    place: CropPlace,
    size: tuple[int, int],
    resample: Image.Resampling,
    fill: tuple[int, int, int] = (0, 0, 0),
) -> Image.Image:
    """Return a crop of the resized image at `size` (height, width), padded with `fill` where it exceeds the image."""
    if is_excessive(place, size):
        return _resize_image_region(image, place, size, resample)
    resized = resize_image(image, (place.height, place.width), resample)
    if (place.height, place.width) == size:
        return resized
    if place.top >= 0 and place.left >= 0 and place.height >= size[0] and place.width >= size[1]:
        return resized.crop((place.left, place.top, place.left + size[1], place.top + size[0]))
    padded = Image.new(image.mode, size[::-1], fill)
    padded.paste(resized, (-place.left, -place.top))
    return padded


class ResizeAndCrop(v2.Transform):
    """Resize, then crop at the centre or at random. A crop that exceeds the resized image is padded.

    A random place is drawn as `v2.RandomCrop` does.

    Args:
        resize: How to resize.
        size: (height, width) of the crop.
        random: Whether the place of the crop is random.
        fill: RGB value, 0..255, of padding.
    """

    def __init__(
        self, resize: Resize, size: tuple[int, int], random: bool = False, fill: Sequence[int] = (0, 0, 0)
    ) -> None:
        super().__init__()
        self.resize = resize
        self.size = size
        self.random = random
        self.fill = (fill[0], fill[1], fill[2])

    def locate(self, height: int, width: int) -> CropPlace:
        """Return the place of the crop in an image of this size; a random one is drawn."""
        resized = self.resize.compute_size(height, width)
        if not self.random:
            return locate_center(resized, self.size)
        top, left = map(_draw_start, resized, self.size)
        return CropPlace(top, left, *resized)

    def is_excessive(self, height: int, width: int) -> bool:
        """Return whether the resized image would be much larger than the crop."""
        return is_excessive(CropPlace(0, 0, *self.resize.compute_size(height, width)), self.size)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Return the place of the crop, for the size of the first input (the image)."""
        return {"place": self.locate(*v2.functional.get_size(flat_inputs[0]))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize and crop one input."""
        place: CropPlace = params["place"]
        if isinstance(inpt, Image.Image):
            return resize_and_crop_image(inpt, place, self.size, self.resize.resample, self.fill)
        if self.is_excessive(*v2.functional.get_size(inpt)):
            return _resize_mask_region(inpt, place, self.size)
        resized = self.resize.transform(inpt, {"size": (place.height, place.width)})
        if (place.height, place.width) == self.size:
            return resized
        (top, below), (left, right) = (
            (max(-start, 0), max(start + part - whole, 0))
            for start, part, whole in zip((place.top, place.left), self.size, (place.height, place.width), strict=True)
        )
        if top or below or left or right:
            resized = v2.functional.pad(resized, [left, top, right, below], fill=0)
        return v2.functional.crop(resized, place.top + top, place.left + left, *self.size)


def _center_start(whole: int, part: int) -> int:
    return -((part - whole) // 2) if whole < part else round((whole - part) / 2)


def _draw_start(whole: int, part: int) -> int:
    return int(torch.randint(abs(whole - part) + 1, ())) + min(whole - part, 0) if whole != part else 0


def _resize_mask_region(mask: Any, place: CropPlace, size: tuple[int, int]) -> Any:
    """Return a crop of the resized mask without resizing the rest. The crop lies inside the resized mask."""
    height, width = v2.functional.get_size(mask)
    rows, columns = (
        ((torch.arange(part) + start) * scale).long()
        for start, part, scale in (
            (place.top, size[0], height / place.height),
            (place.left, size[1], width / place.width),
        )
    )
    return tv_tensors.Mask(mask.as_subclass(Tensor)[..., rows[:, None], columns])


def _resize_image_region(
    image: Image.Image, place: CropPlace, size: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """Return a crop of the resized image without resizing the rest. The crop lies inside the resized image."""
    down, across = image.height / place.height, image.width / place.width  # pixels of the image per resized pixel
    (top, low, rows_seen), (left, right, columns_seen) = (
        _locate_source(start * scale, part * scale, scale, whole)
        for start, part, scale, whole in (
            (place.top, size[0], down, image.height),
            (place.left, size[1], across, image.width),
        )
    )
    # Pillow computes with boxes in single precision, so the box has to be near the origin.
    near = image.crop((left, top, right, low))
    return near.resize(size[::-1], resample, box=(columns_seen[0], rows_seen[0], columns_seen[1], rows_seen[1]))


def _locate_source(start: float, length: float, scale: float, whole: int) -> tuple[int, int, tuple[float, float]]:
    """Return the range of pixels that a filter needs for a part of a side, and that part, counted from its start."""
    margin = math.ceil(FILTER_SUPPORT * max(scale, 1)) + 1
    first, last = max(math.floor(start) - margin, 0), min(math.ceil(start + length) + margin, whole)
    return first, last, (start - first, min(start + length - first, last - first))
