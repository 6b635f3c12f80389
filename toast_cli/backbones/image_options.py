"""How a recipe changes what a backbone sees of an image. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from toast_cli.utils.config import BaseOptions, NamedOptions

RGB = tuple[float, float, float]
NORMALIZATIONS: dict[str, tuple[RGB, RGB]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and standard deviation by name."""


class ImageOptions(BaseOptions):
    """How a photograph becomes the backbone's input. What is left out comes from the backbone's own configuration."""

    resize: int | None = Field(
        None, ge=1, description="shorter side in pixels before the crop; left out: backbone's image size / crop share"
    )
    augment: Literal["none", "flip", "crop-flip", "random-resized-crop"] = Field(
        "none",
        description="training images only: nothing, mirror, random crop and mirror (FGVC), "
        "random resized crop and mirror",
    )
    squash: bool = Field(False, description="resize straight to the input size, ignoring the aspect ratio (VTAB)")
    on_error: Literal["stop", "skip"] = Field(
        "stop",
        description="an image that cannot be read ends the run, or is left out, counted and listed in the results",
    )
    normalize: Literal["imagenet", "half", "none"] | None = Field(
        None,
        description="mean and std by name, instead of the backbone's: ImageNet's; half: 0.5 and 0.5; none: pixels stay "
        "in 0..1",
    )
    cache: bool = Field(
        False,
        description="keep images on disk, resized and not yet cropped or mirrored, from the first time they are read "
        "(TOAST_CACHE_DIR); changes no number",
    )
    mean: tuple[float, float, float] | None = Field(None, description="RGB mean in 0..1, instead of the backbone's")
    std: tuple[float, float, float] | None = Field(
        None, description="RGB standard deviation, instead of the backbone's"
    )

    @model_validator(mode="after")
    def _check_normalization(self) -> ImageOptions:
        if self.normalize is not None and (self.mean is not None or self.std is not None):
            raise ValueError("normalize names a mean and a std; leave it, or mean and std, out")
        return self

    def normalization(self, mean: RGB, std: RGB) -> tuple[RGB, RGB]:
        """What is subtracted, and what is divided by, where the backbone's own are `mean` and `std`."""
        if self.normalize is not None:
            return NORMALIZATIONS[self.normalize]
        return self.mean or mean, self.std or std


class PixelOptions(NamedOptions):
    """Settings that every task with a label for every pixel has: how images are shown to the backbone."""

    scale: tuple[float, float] | None = Field(
        None, description="images.augment=crop-flip: images are first scaled by a random factor in this range"
    )
    evaluation: Literal["slide", "whole"] = Field(
        "whole",
        description="slide: a window of the backbone's input size slides over the image; "
        "whole: every image is resized to that size",
    )

    @field_validator("scale")
    @classmethod
    def _check_scale_order(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and not 0 < scale[0] <= scale[1]:
            raise ValueError("the smaller first, and both above 0")
        return scale
