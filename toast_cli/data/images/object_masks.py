"""What marks the labelled object in an image: a box, its parts, or a file of its own. Becomes a mask when asked for."""

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
"""Pixels by which what is annotated may reach out of its image: sets count from 0 or 1, inside or beyond the edge."""

ASPECT_RATIO_TOLERANCE = 0.02
"""How far the aspect ratios of an image and its mask may lie apart: a scaled copy is rounded, another image is not."""


class Region(Protocol):
    """A part of an image; `what` says in words what such regions are."""

    what: ClassVar[str]

    def mask(self, height: int, width: int) -> np.ndarray:
        """`[height, width]` bool, True in the region, for an image of this size.

        Raises:
            ToastError: the region lies in a file, which cannot be read or is not of this image.
        """

    def fits(self, height: int, width: int) -> bool:
        """Whether all of it lies in an image of this size, give or take `SLACK`.

        Raises:
            ToastError: as `mask`.
        """


@dataclass(frozen=True)
class Box:
    """A rectangle: x, y of the upper left corner, width, height, in pixels of the image, fractions allowed.

    Raises:
        ValueError: a number is not finite, or width or height not above zero.
    """

    what: ClassVar[str] = "its box, which holds more than the object"

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        numbers = (self.x, self.y, self.width, self.height)
        if not all(map(math.isfinite, numbers)) or self.width <= 0 or self.height <= 0:
            raise ValueError("a box needs finite numbers, its width and height above zero")

    def mask(self, height: int, width: int) -> np.ndarray:
        """Filled: True on every pixel that the box touches."""
        import numpy as np

        rows = slice(max(math.floor(self.y), 0), max(math.ceil(self.y + self.height), 0))
        columns = slice(max(math.floor(self.x), 0), max(math.ceil(self.x + self.width), 0))
        mask = np.zeros((height, width), dtype=bool)
        mask[rows, columns] = True
        return mask

    def fits(self, height: int, width: int) -> bool:
        """Whether its corners lie in the image."""
        corners = ((self.x, self.y), (self.x + self.width, self.y + self.height))
        return all(_is_in_image(x, y, height, width) for x, y in corners)


@dataclass(frozen=True)
class Discs:
    """A disc around each point (x, y); where there is no point, nothing."""

    what: ClassVar[str] = "discs around its parts"

    points: tuple[tuple[float, float], ...]
    radius: float

    def mask(self, height: int, width: int) -> np.ndarray:
        """True on every pixel whose middle lies in a disc."""
        import numpy as np

        rows, columns = np.ogrid[:height, :width]
        mask = np.zeros((height, width), dtype=bool)
        for x, y in self.points:
            mask |= (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= self.radius**2
        return mask

    def fits(self, height: int, width: int) -> bool:
        """Whether the points lie in the image; the discs are ours."""
        return all(_is_in_image(x, y, height, width) for x, y in self.points)


@dataclass(frozen=True)
class BoxFile:
    """Rectangles that a file holds, which `read` takes out of it."""

    what: ClassVar[str] = Box.what

    file: Path
    read: Callable[[Path], tuple[Box, ...]]

    def mask(self, height: int, width: int) -> np.ndarray:
        """True in any of them."""
        import numpy as np

        return np.any([box.mask(height, width) for box in self.read(self.file)], axis=0)

    def fits(self, height: int, width: int) -> bool:
        """Whether all of them lie in the image."""
        return all(box.fits(height, width) for box in self.read(self.file))


@dataclass(frozen=True)
class MaskFile:
    """A picture of the region; `inside` takes its RGB pixels `[H, W, 3]` and returns `[H, W]` bool."""

    what: ClassVar[str] = "its outline"

    file: Path
    inside: Callable[[np.ndarray], np.ndarray]

    def mask(self, height: int, width: int) -> np.ndarray:
        """The picture at the image's size."""
        import numpy as np
        from PIL import Image

        from toast_cli.data.images.decode import open_image

        drawn = open_image(self.file)
        if abs(drawn.width * height / (drawn.height * width) - 1) > ASPECT_RATIO_TOLERANCE:
            raise ToastError(
                f"{self.file} is {drawn.width}×{drawn.height} pixels, and its image {width}×{height}.",
                "It shows the region of another image.",
                "Unpack both archives anew.",
                code="data.mask-size-mismatch",
            )
        mask = Image.fromarray(self.inside(np.asarray(drawn)))
        return np.asarray(mask.resize((width, height), Image.Resampling.NEAREST))

    def fits(self, height: int, width: int) -> bool:
        """It is a picture of the whole image, or `mask` refuses it."""
        return True


def _is_in_image(x: float, y: float, height: int, width: int) -> bool:
    return -BOUNDS_TOLERANCE <= x <= width + BOUNDS_TOLERANCE and -BOUNDS_TOLERANCE <= y <= height + BOUNDS_TOLERANCE
