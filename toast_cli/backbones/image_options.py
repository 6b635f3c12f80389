"""Recipe options for the preprocessing of images. Torch-free."""

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
    """Options for the preprocessing of images. Defaults come from the backbone's own configuration."""

    resize: int | None = Field(
        None,
        ge=1,
        examples=[256],
        description="shorter side in pixels before the crop; default: backbone's image size / crop share",
    )
    augment: Literal["none", "flip", "crop-flip", "random-resized-crop"] = Field(
        "none",
        description="augmentation of training images: none, random flip, random crop and flip (FGVC), "
        "random resized crop and flip",
    )
    auto_augment: Literal["trivial", "rand"] | None = Field(
        None,
        examples=["trivial"],
        description="policy of random changes of training images, after the crop; trivial: TrivialAugment, one change "
        "of any strength; rand: RandAugment, rand_operations changes of strength rand_magnitude",
    )
    rand_operations: int = Field(2, ge=1, le=14, examples=[3], description="auto_augment=rand: changes per image")
    rand_magnitude: int = Field(
        9, ge=0, le=30, examples=[15], description="auto_augment=rand: strength of the changes, from 0 to 30"
    )
    color_jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        examples=[0.4],
        description="random brightness, contrast and saturation of training images, by up to this share; 0: off",
    )
    hue: float = Field(
        0.0, ge=0, le=0.5, examples=[0.1], description="random shift of hue, by up to this share of the circle; 0: off"
    )
    rotation: float = Field(
        0.0,
        ge=0,
        le=180,
        examples=[15.0],
        description="random rotation of training images, by up to this many degrees to either side; 0: off",
    )
    erasing: float = Field(
        0.0,
        ge=0,
        le=1,
        examples=[0.25],
        description="probability that a rectangle of a training image is filled with the mean color; 0: off",
    )
    squash: bool = Field(False, description="resize directly to the input size, ignoring the aspect ratio (VTAB)")
    white: int | None = Field(
        None,
        ge=1,
        le=2**32 - 1,
        examples=[4095],
        description="value of white in grey images of 16 or 32 bits, e.g. 4095 for 12 bits in files of 16; default: "
        "65535, or 4095 for a TIFF file of 12 bits",
    )
    on_error: Literal["stop", "skip"] = Field(
        "stop",
        description="unreadable images: stop the run, or skip them, counted and listed in the results",
    )
    normalize: Literal["imagenet", "half", "none"] | None = Field(
        None,
        description="mean and std by name, instead of the backbone's: ImageNet's; half: 0.5 and 0.5; none: pixels in "
        "0..1",
    )
    cache: bool = Field(
        False,
        description="cache resized images on disk (TOAST_CACHE_DIR), before crop and flip; does not change any result",
    )
    mean: tuple[float, float, float] | None = Field(
        None, examples=[[0.5, 0.5, 0.5]], description="RGB mean in 0..1, instead of the backbone's"
    )
    std: tuple[float, float, float] | None = Field(
        None, examples=[[0.5, 0.5, 0.5]], description="RGB standard deviation, instead of the backbone's"
    )

    @model_validator(mode="after")
    def _check_normalization(self) -> ImageOptions:
        if self.normalize is not None and (self.mean is not None or self.std is not None):
            raise ValueError("normalize cannot be combined with mean or std")
        return self

    @property
    def is_random(self) -> bool:
        """Whether training images are augmented at random."""
        strengths = (self.color_jitter, self.hue, self.rotation, self.erasing)
        return self.augment != "none" or self.auto_augment is not None or any(strengths)

    @property
    def sets_normalization(self) -> bool:
        """Whether mean or std are set, instead of the backbone's."""
        return self.normalize is not None or self.mean is not None or self.std is not None

    def normalization(self, mean: RGB, std: RGB) -> tuple[RGB, RGB]:
        """Return the mean to subtract and the std to divide by; `mean` and `std` are those of the backbone."""
        if self.normalize is not None:
            return NORMALIZATIONS[self.normalize]
        return self.mean or mean, self.std or std


class PixelOptions(NamedOptions):
    """Options that all tasks with a label for every pixel share: how the backbone sees the images."""

    scale: tuple[float, float] | None = Field(
        None,
        examples=[[0.5, 2.0]],
        description="images.augment=crop-flip: range of the random scale factor of training images",
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
            raise ValueError("must be two numbers above 0, the smaller first")
        return scale
