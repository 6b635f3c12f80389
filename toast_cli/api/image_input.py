"""Images given to the Python API: paths or PIL images, one or many, opened when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL.Image import Image as PilImage

from toast_cli.data.images.decode import open_image
from toast_cli.data.images.upright import to_upright_rgb
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "str | Path | Image"
"""A path to an image file, or a PIL image. Both are turned as their EXIF orientation says."""


def open_images(images: Any, white: int | None) -> Iterator[Image]:
    """Yield every image as upright RGB, opened when it is asked for.

    Raises:
        UsageError: There are no images, or one is neither a path nor a PIL image, or cannot be converted.
        ToastError: An image file cannot be read.
    """
    several = isinstance(images, Sequence | Iterator) and not isinstance(images, str | bytes)
    image = None
    for index, image in enumerate(images if several else [images]):
        yield _to_rgb_image(image, white, f"image {index} of the list (counted from 0)" if several else "the image")
    if image is None:
        raise UsageError(
            "Expected at least one image, got an empty list.",
            what_to_do="Pass an image or a list of images.",
            code="image.none-given",
        )


def _to_rgb_image(image: Any, white: int | None, which: str) -> Image:
    if isinstance(image, str) and not image:
        raise UsageError(
            f"Expected the path of an image, got an empty text as {which}.",
            what_to_do="Pass the path of an image file.",
            code="image.empty-path",
        )
    if isinstance(image, str | Path):
        return open_image(Path(image), white)
    if not isinstance(image, PilImage):
        raise UsageError(
            f"Expected a path or a PIL image, got {type(image).__name__} as {which}.",
            what_to_do="Convert an array with PIL.Image.fromarray; pass a prepared [B, 3, H, W] tensor to model().",
            code="image.not-an-image",
        )
    try:
        return to_upright_rgb(image, white)
    except (ValueError, OSError) as error:  # no pixels, no known white level, or a truncated file
        raise UsageError(f"Cannot convert {which} to RGB.", str(error), code="image.unreadable") from error
