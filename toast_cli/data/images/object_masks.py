"""Regions that mark the labelled object in an image: a box, discs around its parts, or a file. Rendered on demand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    import numpy as np

BOUNDS_TOLERANCE = 1
"""Pixels by which an annotation may exceed its image: data sets count from 0 or 1, with or without the last pixel."""

ASPECT_RATIO_TOLERANCE = 0.02
"""Maximum relative difference between the aspect ratios of an image and its mask; allows for rounding of a resize."""


class Region(Protocol):
    """A region of an image; `what` describes the kind of region."""

    what: ClassVar[str]

    def rasterize(self, height: int, width: int) -> np.ndarray:
        """Return a `[height, width]` bool mask, True in the region, for an image of this size.

        Raises:
            ToastError: the file of the region cannot be read, or belongs to another image.
        """

    def is_inside(self, height: int, width: int) -> bool:
        """Return whether the region is inside an image of this size, within `BOUNDS_TOLERANCE`.

        Raises:
            ToastError: as in `mask`.
        """


@dataclass(frozen=True)
class Box:
    """A rectangle: x, y of the upper left corner, width and height, in pixels of the image; may be fractional.

    Raises:
        ValueError: a number is not finite, or the width or height is not positive.
    """

    what: ClassVar[str] = "its box, which holds more than the object"

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        numbers = (self.x, self.y, self.width, self.height)
        if not all(map(math.isfinite, numbers)) or self.width <= 0 or self.height <= 0:
            raise ValueError("a box needs finite numbers and a positive width and height")

    def rasterize(self, height: int, width: int) -> np.ndarray:
        """Return a mask that is True on every pixel that the box touches."""
        import numpy as np

        rows = slice(max(math.floor(self.y), 0), max(math.ceil(self.y + self.height), 0))
        columns = slice(max(math.floor(self.x), 0), max(math.ceil(self.x + self.width), 0))
        mask = np.zeros((height, width), dtype=bool)
        mask[rows, columns] = True
        return mask

    def is_inside(self, height: int, width: int) -> bool:
        """Return whether the corners are inside the image."""
        corners = ((self.x, self.y), (self.x + self.width, self.y + self.height))
        return all(_is_in_image(x, y, height, width) for x, y in corners)


@dataclass(frozen=True)
class Discs:
    """A disc around each point (x, y); empty without points."""

    what: ClassVar[str] = "discs around its parts"

    points: tuple[tuple[float, float], ...]
    radius: float

    def rasterize(self, height: int, width: int) -> np.ndarray:
        """Return a mask that is True on every pixel whose centre is in a disc."""
        import numpy as np

        rows, columns = np.ogrid[:height, :width]
        mask = np.zeros((height, width), dtype=bool)
        for x, y in self.points:
            mask |= (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= self.radius**2
        return mask

    def is_inside(self, height: int, width: int) -> bool:
        """Return whether the points are inside the image; the discs may exceed it."""
        return all(_is_in_image(x, y, height, width) for x, y in self.points)


@dataclass(frozen=True)
class BoxFile:
    """Boxes in a file, parsed by `read`."""

    what: ClassVar[str] = Box.what

    file: Path
    read: Callable[[Path], tuple[Box, ...]]

    def rasterize(self, height: int, width: int) -> np.ndarray:
        """Return the union of the masks of all boxes."""
        import numpy as np

        return np.any([box.rasterize(height, width) for box in self.read(self.file)], axis=0)

    def is_inside(self, height: int, width: int) -> bool:
        """Return whether all boxes are inside the image."""
        return all(box.is_inside(height, width) for box in self.read(self.file))


@dataclass(frozen=True)
class MaskFile:
    """An image file of the region; `inside` maps its RGB pixels `[H, W, 3]` to a `[H, W]` bool mask."""

    what: ClassVar[str] = "its outline"

    file: Path
    inside: Callable[[np.ndarray], np.ndarray]

    def rasterize(self, height: int, width: int) -> np.ndarray:
        """Return the mask in the file, resized to the image's size."""
        import numpy as np
        from PIL import Image

        from toast_cli.data.images.decode import open_image

        picture = open_image(self.file)
        if abs(picture.width * height / (picture.height * width) - 1) > ASPECT_RATIO_TOLERANCE:
            raise ToastError(
                f"The mask {self.file} has {picture.width}×{picture.height} pixels, its image {width}×{height}.",
                "The aspect ratios differ, so the mask belongs to another image.",
                "Unpack both archives again.",
                code="data.mask-size-mismatch",
            )
        mask = Image.fromarray(self.inside(np.asarray(picture)))
        return np.asarray(mask.resize((width, height), Image.Resampling.NEAREST))

    def is_inside(self, height: int, width: int) -> bool:
        """Return True: the file covers the whole image, otherwise `mask` raises an error."""
        return True


def _is_in_image(x: float, y: float, height: int, width: int) -> bool:
    return -BOUNDS_TOLERANCE <= x <= width + BOUNDS_TOLERANCE and -BOUNDS_TOLERANCE <= y <= height + BOUNDS_TOLERANCE
