"""Random changes of training images after the crop: rotation, color, policies and erasing, of torchvision's v2.

All of them draw from torch's default generator, so that seed, epoch and image decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torchvision import tv_tensors
from torchvision.transforms import v2

from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.backbones.image_options import ImageOptions


def build_augmentation(images: ImageOptions, fill: Sequence[int], fill_mask: int = 0) -> list[v2.Transform]:
    """Return the random changes of a training image that follow its crop and flip.

    Args:
        images: The options.
        fill: RGB value, 0..255, of pixels that a change leaves empty.
        fill_mask: Value of a mask there. Masks rotate with their image; no other change moves pixels, except for a
            policy, which does not take masks.
    """
    color = list(fill)
    by_type: dict[Any, Any] = {tv_tensors.Mask: fill_mask, "others": color}
    steps: list[v2.Transform] = []
    if images.rotation:
        steps.append(v2.RandomRotation(images.rotation, v2.InterpolationMode.BILINEAR, fill=by_type))
    if images.color_jitter or images.hue:
        steps.append(v2.ColorJitter(images.color_jitter, images.color_jitter, images.color_jitter, images.hue))
    if images.auto_augment == "trivial":
        steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR, fill=color))
    if images.auto_augment == "rand":
        policy = v2.RandAugment(
            images.rand_operations,
            images.rand_magnitude,
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=color,
        )
        steps.append(policy)
    if images.erasing:
        steps.append(v2.RandomErasing(images.erasing, value=[float(channel) for channel in color]))
    return steps


def require_pixel_augmentation(images: ImageOptions) -> None:
    """Check that the random changes of training images can be made to their class maps alike.

    Raises:
        UsageError: a policy or erasing is on.
    """
    refused = {
        "auto_augment": "torchvision's policies move pixels of the image, but not those of its class map.",
        "erasing": "Erased pixels would keep their classes.",
    }
    for name, why in refused.items():
        if getattr(images, name):
            raise UsageError(
                f"images.{name} does not support segmentation.",
                why,
                "Use images.rotation, images.color_jitter, images.hue and images.augment, which do.",
                code="image.unsupported-option",
            )
